"""The benchmark compares equal work, and its harness prints what it says."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import ahead_of_time, ceiling, compile_peer, cpu, gpu, jax_peer, kernels, ours, peers, revision, table
from benchmarks.cases import (
    CASES,
    IMAGES,
    IMAGES_VARIABLE,
    LATENTS,
    TRAINING,
    Case,
    glorot_layers,
    nll_flops,
    run_spec,
    step_flops,
)
from benchmarks.contest import Results, hold, ratios
from benchmarks.measure import Clock, Contestants, Failed, Rate, Tick, TimeUp, Work, rate_here
from benchmarks.plain import PlainModel, set_gradients
from pipeline.errors import UserError
from pipeline.experiments.spec import BATCH_SIZE, CohortSpec
from pipeline.models import compiled_step, fused
from pipeline.models.gradient import estimator_groups, gradient_estimate
from pipeline.models.networks import Parameters, count_parameters
from pipeline.objectives import OBJECTIVES
from pipeline.records.run_folder import AVERAGED
from tests.conftest import PATIENCE_SECONDS, ROOT, make_run, wait_for
from tests.plain import gradients_of, model_of, pipeline_gradients

CPU = torch.device("cpu")


def random_model(latent: tuple[int, ...]) -> tuple[Parameters, PlainModel]:
    """One model twice, float64."""
    generator = torch.Generator().manual_seed(1)
    flat = 0.1 * torch.randn(1, count_parameters(latent), generator=generator, dtype=torch.float64)
    p = Parameters(latent, flat)
    plain = PlainModel(latent).double()
    plain.load_state_dict(model_of(p).state_dict())
    return p, plain


def random_batch(case: Case) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    x = (torch.rand(BATCH_SIZE, 784, generator=generator) < 0.3).double()
    shapes = [(case.T, BATCH_SIZE, units) for units in case.latent]
    return x, [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def our_gradient(p: Parameters, case: Case, x: Tensor, eps: list[Tensor]) -> dict[str, Tensor]:
    """Of the batch's mean bound."""
    run = run_spec(case, "published-code", seed=0, precision="float64")
    scale = torch.full((1, 1, 1), 1 / BATCH_SIZE, dtype=torch.float64)
    noise = [draw.unsqueeze(0) for draw in eps]
    return pipeline_gradients(gradient_estimate(p, x.unsqueeze(0), noise, estimator_groups([run]), scale)[0])


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: case.name)
def test_plain_pytorch_makes_the_same_gradient(case: Case) -> None:
    p, plain = random_model(case.latent)
    x, eps = random_batch(case)
    set_gradients(plain, case, (x, eps))
    gradients = gradients_of(plain)
    for name, expected in our_gradient(p, case, x, eps).items():
        # Plain goes down minus the bound, ours up the bound.
        torch.testing.assert_close(-gradients[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: case.name)
def test_weights_of_the_compiled_peer_are_the_objectives(case: Case) -> None:
    log_w = 3 * torch.randn(case.T, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = OBJECTIVES[case.objective].weights(log_w.view(case.M, case.K, -1))
    theta, phi = compile_peer._weights(case, log_w)
    torch.testing.assert_close(theta, expected.theta.reshape(case.T, -1))
    torch.testing.assert_close(phi, expected.path.reshape(case.T, -1))


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: case.name)
def test_one_update_of_the_compiled_peer_is_adams(case: Case) -> None:
    """Uncompiled, and twice: its Adam is lagged, so that the first update moves the moments alone."""
    torch.manual_seed(0)
    model = compile_peer.CalledModel(case.latent)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    before = {name: value.clone() for name, value in parameters.items()}
    m = {name: torch.zeros_like(value) for name, value in parameters.items()}
    v = {name: torch.ones_like(value) for name, value in parameters.items()}
    update = compile_peer._update(model, case)
    grey = torch.ones(BATCH_SIZE, 784)
    update(parameters, m, v, grey, torch.tensor(1e-3))
    assert all(torch.equal(parameters[name], before[name]) for name in before)
    first, second = ({name: value.clone() for name, value in moment.items()} for moment in (m, v))
    update(parameters, m, v, grey, torch.tensor(1e-3))
    for name, value in first.items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(parameters[name], before[name] + 1e-3 * value / (second[name].sqrt() + 1e-4))


@pytest.mark.skipif(jax_peer.missing() is not None, reason=str(jax_peer.missing()))
@pytest.mark.parametrize("latent", LATENTS, ids=["1L", "2L"])
def test_log_weights_in_jax_are_ours(latent: tuple[int, ...]) -> None:
    jax: Any = importlib.import_module("jax")
    case = Case("k5", "", "iwae", 1, 5, latent)
    x, eps = random_batch(case)
    layers = glorot_layers(latent)
    log_w = jax_peer._log_w(jax, layers, x.float().numpy(), [draw.float().numpy() for draw in eps])
    plain = PlainModel(latent)
    for name, (weight, bias) in layers.items():
        side = "encoder" if name.startswith("q") else "decoder"
        plain.get_parameter(f"{side}.{name}.weight").data.copy_(torch.from_numpy(weight).T)
        plain.get_parameter(f"{side}.{name}.bias").data.copy_(torch.from_numpy(bias))
    expected = plain.log_weights(x.float(), [draw.float() for draw in eps]).detach()
    torch.testing.assert_close(torch.tensor(log_w.tolist()), expected, rtol=1e-5, atol=1e-2)


def test_cases_are_runs_of_the_pipeline() -> None:
    for case in TRAINING:
        run = run_spec(case, "published-code", seed=3)
        assert run.T == case.T
        assert run.latent == case.latent
        assert run.objective in OBJECTIVES
        assert run.total_steps == 3280 * 1000


def test_a_case_travels_as_json() -> None:
    for case in CASES.values():
        assert Case.of(json.loads(json.dumps(asdict(case)))) == case


def test_operations_are_counted_by_layer() -> None:
    encoder, decoder = (784 * 200, 200 * 200 + 2 * 200 * 50), 50 * 200 + 200 * 200 + 200 * 784
    assert step_flops(CASES["k50-1L"]) == 2 * 20 * (2 * encoder[0] + 3 * encoder[1] + 3 * 50 * decoder)
    assert nll_flops(CASES["nll-1L"]) == 2 * (sum(encoder) + 5000 * decoder)
    q1, above = (784 * 200, 200 * 200 + 2 * 200 * 100), 100 * 100 + 100 * 100 + 2 * 100 * 50
    below = 50 * 100 + 100 * 100 + 2 * 100 * 100 + 100 * 200 + 200 * 200 + 200 * 784
    assert step_flops(CASES["k5-2L"]) == 2 * 20 * (2 * q1[0] + 3 * q1[1] + 3 * 5 * (above + below))


def by_a_clock_of_its_own(set_clock: Callable[[str, Callable[[], float]], None]) -> Work:
    """Work of 1024 units a second of processor time, which takes four times as long by the clock: both are moved by
    the work alone. `set_clock(name, function)` puts a clock into the module `time`."""
    passed = [0.0]
    set_clock("process_time", lambda: passed[0])
    set_clock("perf_counter", lambda: 4 * passed[0])

    def work(tick: Tick) -> None:
        while True:
            tick(1)
            passed[0] += 2.0**-10

    return work


def test_a_rate_is_work_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    work = by_a_clock_of_its_own(lambda name, clock: monkeypatch.setattr(time, name, clock))
    assert rate_here(work, 0.05) == Rate(cpu=1024.0, wall=256.0)


def test_the_clock_counts_what_comes_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.process_time", lambda: now[0] / 2)
    clock = Clock(0.5)

    def work(tick: Tick) -> None:
        for _ in range(20):
            tick(3)
            now[0] += 0.125

    with pytest.raises(TimeUp):
        work(clock)
    # Warm from 0.125 s on of the clock's time; then 8 ticks of 3 units in 1 s, half of it on the processor.
    assert clock.rate == Rate(cpu=48.0, wall=24.0)


def counting(case: Any) -> Work:
    """An entry for `Contestants`: fails at the case 1, ends its process at 2, declines 3."""
    if case == 1:
        raise ValueError("no such thing\nsecond line")
    if case == 3:
        raise NotImplementedError("not my trade")
    if case == 2:
        sys.exit(3)
    print("a library talks")
    return by_a_clock_of_its_own(lambda name, clock: setattr(time, name, clock))


def test_contestants_measure_fail_and_end_in_processes_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    """Every case is independent of how another one went; what is declined is no fault, whose traceback is shown."""
    contestants = Contestants(f"{Path(__file__)}:counting", {"PYTHONPATH": str(ROOT)}, processes=2)
    both = Rate(cpu=1024.0, wall=2 * 256.0)
    try:
        assert contestants.rate(0, 0.02) == both
        with pytest.raises(Failed, match=r"^ValueError: no such thing$"):
            contestants.rate(1, 0.02)
        assert contestants.rate(0, 0.02) == both
        with pytest.raises(Failed, match="ended with code 3"):
            contestants.rate(2, 0.02)
        assert contestants.rate(0, 0.02) == both
        with pytest.raises(Failed, match=r"^not my trade$"):
            contestants.rate(3, 0.02)
    finally:
        contestants.close()
    shown = capfd.readouterr().err
    assert "no such thing" in shown
    assert "not my trade" not in shown


class OfOldRevision:
    """Stands for `benchmarks.cases` and `benchmarks.ours` of a revision that knows the 1-layer network alone."""

    LATENT, IMAGES = LATENTS[0], 40

    @staticmethod
    def keep_freed_memory() -> None:
        pass


def test_an_older_revision_declines_what_it_cannot_measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((40, 784), np.uint8))
    monkeypatch.setenv(IMAGES_VARIABLE, str(tmp_path / "images.npy"))
    monkeypatch.setattr(revision.importlib, "import_module", lambda name: OfOldRevision)
    with pytest.raises(NotImplementedError, match="the 1-layer network alone"):
        revision.work(asdict(CASES["nll-2L"]))


def test_a_benchmark_that_is_ended_leaves_no_worktree(tmp_path: Path) -> None:
    def checkouts() -> list[str]:
        listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout
        return [line for line in listed.splitlines() if line.startswith(str(tmp_path))]

    words = ["--cases", "k1-1L", "--rounds", "1000", "--against", "HEAD", "--peers"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(checkouts, process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM, told
    assert checkouts() == []
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_a_contestant_that_fails_is_out_of_its_case_alone() -> None:
    order: list[str] = []

    def measured(name: str, fails_at: int = 99) -> Any:
        def rate(seconds: float) -> Rate:
            order.append(name)
            if order.count(name) == fails_at:
                raise Failed("out of luck")
            return Rate(float(len(order)), 1.0)

        return rate

    contests = {"k1-1L": {"a": measured("a"), "b": measured("b", fails_at=2)}, "k5-1L": {"a": measured("c")}}
    results = hold(contests, rounds=2, seconds=1.0, on_progress=lambda _: None)
    assert order == ["a", "b", "c", "a", "b", "c", "a", "c"]
    assert set(results.rates["k1-1L"]) == {"a"}
    assert results.failures == {"k1-1L": {"b": "out of luck"}, "k5-1L": {}}
    assert [rate.cpu for rate in results.rates["k5-1L"]["a"]] == [6.0, 8.0]


def test_table_of_the_cpu_says_what_was_measured_and_what_was_not() -> None:
    flops = step_flops(CASES["k1-1L"])
    rates = {ours.DEFAULT: [Rate(30.0, 20.0), Rate(50.0, 40.0)], cpu.AGAINST: [Rate(10.0, 9.0), Rate(25.0, 24.0)]}
    machine = {ceiling.FMA: [Rate(60.0 * flops, 1.0), Rate(100.0 * flops, 1.0)]}
    results = Results({"ceilings": machine, "k1-1L": rates}, {"k1-1L": {"JAX": "it is ill"}})
    text = table.cpu_tables(results, "abc1234")
    assert "| case | ours | ours at abc1234 |" in text
    assert "| VAE, k=1, 1 layer | 40 (30 to 50) | 17.5 (10 to 25) |" in text
    assert "| VAE, k=1, 1 layer | 30 | 16.5 |" in text
    assert "| VAE, k=1, 1 layer | 2.50 (2.00 to 3.00) |" in text
    assert "| VAE, k=1, 1 layer | 50% |" in text
    assert "Not measured: JAX (VAE, k=1, 1 layer): it is ill." in text


def test_what_is_not_measured_for_one_reason_has_one_line() -> None:
    failures = {"kernels": {"a": "no instruction", "b": "no instruction"}, "nll-2L": {cpu.AGAINST: "1 layer alone"}}
    lines = table.cpu_tables(Results({}, failures), "abc1234").splitlines()
    assert "Not measured: kernels (a; b): no instruction." in lines
    assert "Not measured: ours at abc1234 (NLL, 5000 samples, 2 layers): 1 layer alone." in lines


@pytest.mark.skipif(ceiling.missing() is not None, reason=str(ceiling.missing()))
def test_ceilings_are_measured() -> None:
    rates = {name: rate_here(ceiling.work(name), 0.01).cpu for name in (ceiling.FMA, *ceiling.BYTES)}
    assert all(math.isfinite(rate) and rate > 1e8 for rate in rates.values())


def test_products_are_measured_wherever_the_step_is_compiled() -> None:
    step = compiled_step.library()
    assert kernels.missing() == (step if isinstance(step, str) else None)


@pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
def test_products_of_the_compiled_step_are_measured() -> None:
    """One of each kind; the operations of a call are those of a matrix product of its shape."""
    units: list[float] = []
    for name in list(kernels.NAMES)[:9]:
        work = kernels.work(name)
        with pytest.raises(TimeUp):
            work(lambda count: (units.append(count), _stop())[1])
    for count, (layer, _) in zip(units, [(l, p) for l in kernels.LAYERS for p in kernels.PASSES], strict=True):
        inputs, outputs = map(int, layer.split("x"))
        assert count % (2 * 20 * inputs * outputs) == 0


def _stop() -> None:
    raise TimeUp


@pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
def test_all_rows_leaves_none_out_and_the_default_does() -> None:
    """A sharpened model, in which few of 50 samples count."""
    shares = []
    images = torch.randint(0, 256, (IMAGES, 784), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for variant in ("ours, all rows", ours.DEFAULT):
        stack = ours.VARIANTS[variant](CASES["k50-1L"], images)
        stack.advance(10)
        shares.append(float(stack.buffers.sums[0, AVERAGED.index("rows_kept")]) / 10)
    assert shares[0] == 1
    assert 0 < shares[1] < 1


def test_slow_products_are_named() -> None:
    machine = {ceiling.FMA: [Rate(100e9, 1.0)]}
    products = {"good": [Rate(80e9, 1.0)], "spilled": [Rate(37e9, 1.0)]}
    text = table.cpu_tables(Results({"ceilings": machine, "kernels": products}, {}))
    assert "| spilled | 37 (37 to 37) | 37% |" in text
    assert text.endswith("Below 50% of the peak (a spilled register tile looks so): spilled.")


def test_command_prints_tables_and_writes_every_round(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    words = ["--rounds", "2", "--seconds", "0.01", "--cases", "nll-1L", "k1-2L", "--device", "cpu"]
    command = [sys.executable, "-m", "benchmarks", *words, "--peers", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    for title in ("VAE, k=1, 2 layers", "NLL, 5000 samples, 1 layer"):
        # On a processor's time, by the clock, and of the peak where that is known.
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {title} |")]
        assert len(rows) == 2 + (ceiling.missing() is None)
        assert len({line.count("|") for line in rows}) == 1
    values = json.loads(file.read_text())
    machine = {cpu.CEILINGS: ceiling.missing(), cpu.KERNELS: kernels.missing()}
    assert set(values["rates"]) == {"k1-2L", "nll-1L", *(name for name, why in machine.items() if why is None)}
    assert set(values["rates"]["nll-1L"]) == {ours.DEFAULT}
    assert ours.DEFAULT in values["rates"]["k1-2L"]
    assert {*values["rates"]["k1-2L"], *values["failures"]["k1-2L"]} == set(ours.VARIANTS)
    for rates in (rates for contestants in values["rates"].values() for rates in contestants.values()):
        assert len(rates) == 2
        assert all(math.isfinite(rate[kind]) and rate[kind] > 0 for rate in rates for kind in ("cpu", "wall"))


def test_a_revision_is_checked_out_and_put_away() -> None:
    with revision.checkout("HEAD") as folder:
        assert (folder / "pipeline" / "objectives.py").is_file()
    assert not folder.exists()
    with pytest.raises(UserError, match="--against nonesuch"), revision.checkout("nonesuch"):
        pass


def test_peers_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert all("pip install" in str(peer.missing()) for peer in (jax_peer, peers))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in str(compile_peer.missing())


def test_stacks_of_a_gpu_are_measured_and_tabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "CUDA_SQUARE", (64, 64, 64))
    monkeypatch.setattr(gpu, "PROJECTION_SECONDS", 0.02)
    cases = [CASES["k1-1L"], CASES["nll-1L"]]
    results = gpu.run(cases, 2, 0.02, False, lambda _: None, CPU, "float32", sizes=(1, 2))
    assert set(results.rates["k1-1L"]) == {str(gpu.StackName("auto", size)) for size in (1, 2)} | {gpu.PLAIN}
    cohort = CohortSpec("paper", "one", "one-mnist-1L-T5", (make_run(seed=0), make_run(seed=1)))
    hours = gpu.projected_hours([cohort, cohort], CPU, lambda _: None)
    assert set(hours) == {"one"}
    text = table.gpu_tables(results, hours)
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("|")]
    assert rows[2:5] == ["| VAE, k=1, 1 layer", "| VAE, k=1, 1 layer", "| NLL, 5000 samples, 1 layer"]
    assert rows[-1] == "| all"


def test_what_an_assembler_says() -> None:
    spills = "    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads"
    said = f"{spills}\nptxas info    : Used 255 registers, used 1 barriers"
    assert ahead_of_time.parsed(said, 1024) == ahead_of_time.Usage(255, 12, 16, 1024)


@pytest.mark.skipif(not fused.available(), reason="Triton is not installed: pip install --no-deps triton")
@pytest.mark.parametrize("tf32", [False, True])
def test_the_kernel_of_the_output_layer_fits_an_h100(tf32: bool) -> None:
    """All it works on in registers, and two programs of it on a processor."""
    usage = ahead_of_time.usage(LATENTS[0], tf32, capability=90)
    assert (usage.spill_stores, usage.spill_loads) == (0, 0)
    assert 2 * usage.shared < ahead_of_time.SHARED_BYTES[90]


def test_without_triton_nothing_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "triton", None)
    with pytest.raises(UserError, match="pip install --no-deps triton"):
        ahead_of_time.usage(LATENTS[0], False, capability=90)
