"""The benchmark compares equal work, and its harness prints what it says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import ceiling, cpu, gpu, table
from benchmarks.cases import CASES, NLL, TRAINING, Case, nll_flops, run_spec, step_flops
from benchmarks.contest import Contestant, ratios
from benchmarks.measure import Layout, Tick, rate, rate_here
from benchmarks.plain import Plain, set_gradients
from pipeline.models.log_weights import backward, forward
from pipeline.models.networks import Parameters
from pipeline.objectives import OBJECTIVES
from pipeline.spec import BATCH_SIZE, CohortSpec
from pipeline.training.stack import estimators, weigh
from tests.conftest import ROOT, make_run

CPU = torch.device("cpu")
NAMES = {
    "q1.hidden1": "encoder.0",
    "q1.hidden2": "encoder.2",
    "q1.mean": "mean",
    "q1.log_std": "log_std",
    "p1.hidden1": "decoder.0",
    "p1.hidden2": "decoder.2",
    "p1.logits": "decoder.4",
}
"""Ours to plain's."""


def random_model(seed: int) -> tuple[Parameters, Plain]:
    """One model twice, float64."""
    torch.manual_seed(seed)
    plain = Plain().double()
    state = plain.state_dict()
    named = {}
    for ours, theirs in NAMES.items():
        named[f"{ours}.weight"] = state[f"{theirs}.weight"].T
        named[f"{ours}.bias"] = state[f"{theirs}.bias"]
    parts = [named[f"{ours}.{kind}"].reshape(-1) for ours in NAMES for kind in ("weight", "bias")]
    return Parameters((50,), torch.cat(parts).unsqueeze(0)), plain


def our_gradient(p: Parameters, case: Case, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Of the batch's mean bound, by plain's names."""
    run = run_spec(case, "paper", seed=0, precision="float64")
    f = forward(p, x.unsqueeze(0), [eps.unsqueeze(0)], backward_follows=True)
    scale = torch.full((1, 1, 1), 1 / BATCH_SIZE, dtype=torch.float64)
    weights, _ = weigh(estimators([run]), f.log_w, scale)
    g = backward(p, f, weights)
    gradients = {}
    for ours, theirs in NAMES.items():
        gradients[f"{theirs}.weight"] = g.weight[ours][0].T
        gradients[f"{theirs}.bias"] = g.bias[ours][0, 0]
    return gradients


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: case.name)
def test_plain_pytorch_makes_the_same_gradient(case: Case) -> None:
    p, plain = random_model(1)
    x = (torch.rand(BATCH_SIZE, 784) < 0.3).double()
    eps = torch.randn(case.T, BATCH_SIZE, 50, dtype=torch.float64)
    set_gradients(plain, case, x, eps)
    ours = our_gradient(p, case, x, eps)
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        # Plain goes down minus the bound, ours up the bound.
        torch.testing.assert_close(-parameter.grad, ours[name], rtol=1e-9, atol=1e-12)


def test_plain_pytorch_makes_the_same_log_weights() -> None:
    p, plain = random_model(2)
    x = (torch.rand(BATCH_SIZE, 784) < 0.3).double()
    eps = torch.randn(6, BATCH_SIZE, 50, dtype=torch.float64)
    ours = forward(p, x.unsqueeze(0), [eps.unsqueeze(0)]).log_w[0]
    torch.testing.assert_close(plain(x, eps), ours)


def test_cases_are_runs_of_the_pipeline() -> None:
    for case in TRAINING:
        run = run_spec(case, "published-code", seed=3)
        assert run.T == case.T
        assert run.objective in OBJECTIVES
        assert run.total_steps == 3280 * 1000


def test_operations_are_counted_by_layer() -> None:
    encoder, decoder = (784 * 200, 200 * 200 + 2 * 200 * 50), 50 * 200 + 200 * 200 + 200 * 784
    assert step_flops(CASES["k50"]) == 2 * 20 * (2 * encoder[0] + 3 * encoder[1] + 3 * 50 * decoder)
    assert nll_flops() == 2 * (sum(encoder) + 5000 * decoder)


def count_ticks(rank: int, tick: Tick) -> None:
    while True:
        tick(1)


def fail_at_rank_1(rank: int, tick: Tick) -> None:
    if rank == 1:
        raise ValueError("no such thing")
    count_ticks(rank, tick)


def test_rates_add_up_over_processes() -> None:
    assert rate_here(count_ticks, 0.05, CPU) > 1000
    assert rate(count_ticks, 0.05, Layout(2, 1)) > 2000


def test_a_failing_process_is_reported_and_does_not_hang_the_others() -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        rate(fail_at_rank_1, 0.05, Layout(2, 1, keep_memory=True))


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_command_prints_a_row_for_each_case_and_writes_every_round(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    words = ["--rounds", "2", "--seconds", "0.05", "--cases", "nll", "k1", "--device", "cpu", "--no-pythae"]
    command = [sys.executable, "-m", "benchmarks", *words, "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (block.splitlines() for block in done.stdout.split("\n\n")[1:3])
    for title in ("VAE, k=1", "NLL, 5000 samples"):
        assert sum(line.startswith(title) for line in first) == 1
        assert sum(line.startswith(title) for line in second) == 1
    assert len({len(line) for line in first}) == 1
    values = json.loads(file.read_text())
    assert set(values["rates"]) == {"k1", "nll"}
    assert set(values["rates"]["k1"]) == {cpu.OURS, cpu.OURS_ALONE, cpu.OURS_PAPER, cpu.PLAIN}
    for rates in (*values["rates"]["k1"].values(), *values["rates"]["nll"].values(), *values["ceilings"].values()):
        assert len(rates) == 2
        assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_stacks_of_a_gpu_are_measured_and_tabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "CUDA_SQUARE", (64, 64, 64))
    monkeypatch.setattr(gpu, "PROJECTION_SECONDS", 0.02)
    cases = [CASES["k1"], NLL]
    results = gpu.run(cases, 2, 0.02, False, lambda _: None, CPU, "float32", sizes=(1, 2))
    assert set(results.rates["k1"]) == {str(gpu.StackName("auto", size)) for size in (1, 2)} | {gpu.PLAIN}
    cohort = CohortSpec("paper", "one", "one-mnist-1L-T5", (make_run(seed=0), make_run(seed=1)))
    hours = gpu.projected_hours([cohort, cohort], CPU, lambda _: None)
    assert set(hours) == {"one"}
    lines = table.gpu_tables(results, hours).splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["VAE, k=1", "VAE, k=1", "NLL, 5000 samples"]
    assert lines[-1].startswith("all")


def test_contestants_of_a_case_share_its_name_and_work() -> None:
    images = torch.zeros(40, 784, dtype=torch.uint8)
    found: list[Contestant] = cpu.contestants(CASES["piwae"], images, images.float(), with_pythae=True)
    assert [c.name for c in found] == [
        cpu.OURS,
        cpu.OURS_ALONE,
        cpu.OURS_PAPER,
        cpu.PYTHAE,
        cpu.PYTHAE_APART,
        cpu.PLAIN,
    ]
