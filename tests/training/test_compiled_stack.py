"""The compiled step against the plain one in float64, which has no rows left out, no padding and no C."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import objectives
from pipeline.draws.philox import normal, stream_key
from pipeline.errors import UserError
from pipeline.experiments.protocol import PROTOCOLS, with_changes
from pipeline.experiments.spec import RunSpec, Stage
from pipeline.models import compiled_step
from pipeline.models.gradient import estimator_groups, gradient_estimate
from pipeline.models.networks import Parameters, network
from pipeline.objectives import OBJECTIVES, Objective, Weights, elbo, normalized
from pipeline.records.run_folder import CHECKPOINT, Job, RunState, load_checkpoint, save_checkpoint
from pipeline.training import engines
from pipeline.training.batches import Batches
from pipeline.training.coefficients import coefficients
from pipeline.training.compiled_stack import CompiledStack, ImageOrder
from pipeline.training.engines import stack_for
from pipeline.training.plain_stack import PlainStack
from pipeline.training.train import initial_state
from pipeline.training.update import image_weights
from tests.conftest import make_run

ONE, TWO = (50,), (100, 50)
CODE, PAPER = PROTOCOLS
needs_the_step = pytest.mark.skipif(
    not isinstance(compiled_step.library(), ctypes.CDLL), reason=f"no compiled step: {compiled_step.library()}"
)


def processor() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def images() -> Tensor:
    """[600, 784] uint8: grey, four pixels in five black; integers alone, the same on every machine."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (600, 784), dtype=np.uint8)
    grey[rng.integers(0, 5, grey.shape) > 0] = 0
    return torch.from_numpy(grey)


def start(run: RunSpec, images: Tensor, earlier: int = 0) -> RunState:
    state = initial_state(Job(run, "", Path(), None), images)
    state.earlier_steps = earlier
    return state


def plain_stack(run: RunSpec, state: RunState, images: Tensor) -> PlainStack:
    return PlainStack([replace(run, precision="float64")], [state], images)


def trained(run: RunSpec, images: Tensor, steps: int, earlier: int = 0) -> RunState:
    """After some updates: with every weight zero or all alike, mistakes hide."""
    state = start(run, images, earlier)
    stack = CompiledStack([run], [state], images)
    stack.advance(steps)
    stack.write_back([state])
    state.sums, state.summed = torch.zeros_like(state.sums), 0
    return state


def compiled_gradient(run: RunSpec, state: RunState, images: Tensor) -> tuple[Tensor, Tensor]:
    """As Adam's first moment has it with beta1 = 0, [count]; and the sums of the history."""
    still = replace(run, schedule=(Stage(1000, 0.0),), protocol=replace(run.protocol, adam_beta1=0.0))
    stack = CompiledStack([still], [replace(state, m=torch.zeros_like(state.m))], images)
    stack.advance(1)
    assert torch.equal(stack.buffers.flat[0], state.flat)
    return stack.buffers.m[0].double(), stack.buffers.sums[0]


def plain_gradient(run: RunSpec, state: RunState, images: Tensor) -> tuple[Tensor, Tensor]:
    batches = Batches([run], [state.earlier_steps], images, torch.float64)
    batches.prepare(state.step, 1)
    x, eps = batches.images(torch.tensor(state.step)), batches.noise(torch.tensor(state.step))
    p = Parameters(run.latent, state.flat.double().unsqueeze(0))
    gradient, terms = gradient_estimate(p, x, eps, estimator_groups([run]), image_weights([run], p.flat))
    return torch.cat([piece.flatten() for piece in gradient.pieces(run.latent)]), terms[0]


def apart(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def estimator_cases() -> list[Any]:
    """Every objective with M and K unlike each other, and some counts and parameters at the edges."""
    cases = []
    for name, entry in OBJECTIVES.items():
        M, K = 1 if entry.single_M else 3, 1 if entry.single_K else 7
        cases.append((name, M, K, 0.3 if entry.parameter else None))
    cases += [("vae", 1, 1, None), ("iwae", 1, 50, None), ("miwae", 7, 3, None), ("piwae", 2, 9, None)]
    cases += [("vr", 1, 5, -1.0), ("vr", 1, 5, 1.0), ("vr", 1, 5, 1.5), ("ciwae", 1, 5, 1.0)]
    return [pytest.param(*case, id="-".join(map(str, case))) for case in cases]


@needs_the_step
@pytest.mark.parametrize("latent", [ONE, TWO, (2,), (100, 2)])
@pytest.mark.parametrize(("objective", "M", "K", "parameter"), estimator_cases())
def test_gradients(
    latent: tuple[int, ...], objective: str, M: int, K: int, parameter: float | None, images: Tensor
) -> None:
    run = make_run(objective, M, K, parameter=parameter, latent=latent, max_steps=None)
    state = trained(run, images, 30)
    ours, sums = compiled_gradient(run, state, images)
    expected, terms = plain_gradient(run, state, images)
    assert apart(ours, expected) < 1e-5
    # Each layer by itself too: the output layer's gradient would drown an error in a small one.
    at = 0
    for layer in network(latent):
        count = (layer.inputs + 1) * layer.outputs
        span = slice(at, at + count)
        assert apart(ours[span], expected[span]) < 3e-5, layer.name
        at += count
    torch.testing.assert_close(sums[:4], terms[:4], rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def of_avx2(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The step as a processor without AVX-512 has it."""
    if "avx2" not in processor():
        pytest.skip("this processor has no AVX2")
    return compiled_step.build(tmp_path_factory.mktemp("avx2") / "step.so", ["cc"], ("-march=haswell",))


@needs_the_step
@pytest.mark.parametrize("latent", [ONE, TWO, (3,)])
@pytest.mark.parametrize(
    ("objective", "M", "K"), [("vae", 1, 1), ("piwae", 3, 7), ("rws-dreg", 1, 6), ("vr-max", 1, 9)]
)
def test_gradients_with_avx2(
    latent: tuple[int, ...],
    objective: str,
    M: int,
    K: int,
    images: Tensor,
    of_avx2: ctypes.CDLL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_step, "library", lambda: of_avx2)
    run = make_run(objective, M, K, latent=latent, max_steps=None)
    state = trained(run, images, 30)
    ours, sums = compiled_gradient(run, state, images)
    expected, terms = plain_gradient(run, state, images)
    assert apart(ours, expected) < 1e-5
    torch.testing.assert_close(sums[:4], terms[:4], rtol=1e-6, atol=0)
    assert not compiled_step.rounds_to_bfloat16()


def rounded_gradient(run: RunSpec, precision: str, state: RunState, images: Tensor) -> tuple[Tensor, Tensor]:
    return compiled_gradient(replace(run, precision=precision), state, images)


@pytest.mark.skipif(not compiled_step.rounds_to_bfloat16(), reason="this processor multiplies no bfloat16")
@pytest.mark.parametrize("latent", [ONE, TWO, (3,), (100, 2)])
@pytest.mark.parametrize(("objective", "M", "K"), [("vae", 1, 1), ("miwae", 3, 7), ("iwae-dreg", 1, 6)])
def test_gradients_of_rounded_products(latent: tuple[int, ...], objective: str, M: int, K: int, images: Tensor) -> None:
    """bfloat16 has eight bits: a product is off by some 2e-3. Rounded backward only, the history is float32's."""
    run = make_run(objective, M, K, latent=latent, max_steps=None)
    state = trained(run, images, 30)
    expected, _ = plain_gradient(run, state, images)
    _, sums = compiled_gradient(run, state, images)
    backward, same_sums = rounded_gradient(run, "bfloat16-backward", state, images)
    assert 1e-4 < apart(backward, expected) < 1e-2
    assert torch.equal(same_sums, sums)
    both, other_sums = rounded_gradient(run, "bfloat16", state, images)
    assert apart(both, expected) < 0.1
    torch.testing.assert_close(other_sums[:4], sums[:4], rtol=1e-3, atol=0)
    assert not torch.equal(other_sums, sums)


@needs_the_step
def test_rows_without_weight_are_left_out(images: Tensor) -> None:
    """Of VR-max one sample in ten has a weight; eight rows are a tile, the last of which may be others."""
    run = make_run("vr-max", 1, 10, max_steps=None)
    _, sums = compiled_gradient(run, trained(run, images, 30), images)
    assert float(sums[4]) == pytest.approx(24 / 200)
    run = make_run("vae", 10, 1, max_steps=None)
    _, sums = compiled_gradient(run, trained(run, images, 30), images)
    assert float(sums[4]) == 1


def single_changes() -> list[Any]:
    other = {
        **{"adam_beta1": 0.5, "adam_beta2": 0.9, "adam_eps": 1e-3, "second_moment_start": 0.5},
        **{"gradient": {"sum": "mean", "mean": "sum"}},
    }
    cases = []
    for name, protocol in PROTOCOLS.items():
        cases.append(pytest.param(protocol, id=name))
        for field, value in asdict(protocol).items():
            new = other.get(field, not value)
            new = new[value] if isinstance(new, dict) else new
            cases.append(pytest.param(with_changes(protocol, {field: new}), id=f"{name}-{field}"))
    return cases


@needs_the_step
@pytest.mark.parametrize("protocol", single_changes())
def test_protocols(protocol: Any, images: Tensor) -> None:
    """Every field switched alone: 25 updates, across the ends of epochs and of a stage, of a continued run."""
    schedule = (Stage(1, 1e-3), Stage(2, 5e-4))
    run = make_run("iwae", 1, 4, latent=TWO, protocol=protocol, train_images=200, schedule=schedule, max_steps=None)
    ours = CompiledStack([run], [start(run, images, earlier=7)], images)
    plain = plain_stack(run, start(run, images, earlier=7), images)
    before = plain.buffers.flat.clone()
    ours.advance(25)
    plain.advance(25)
    assert apart(ours.buffers.flat - before, plain.buffers.flat - before) < 1e-3
    assert apart(ours.buffers.m, plain.buffers.m) < 1e-3
    assert apart(ours.buffers.v, plain.buffers.v) < 1e-3
    torch.testing.assert_close(ours.buffers.sums[:, :4], plain.buffers.sums[:, :4], rtol=1e-5, atol=0)
    assert ours.step == plain.step == int(ours.buffers.counter) == int(plain.buffers.counter)


@needs_the_step
@pytest.mark.parametrize("protocol", single_changes())
def test_three_updates_from_one_state(protocol: Any, images: Tensor) -> None:
    """Before rounding has parted the two: what is left is that of a gradient, and of the weights themselves."""
    run = make_run("iwae", 1, 4, latent=TWO, protocol=protocol, train_images=200, max_steps=None)
    state = trained(run, images, 30)
    copied = replace(state, flat=state.flat.clone(), m=state.m.clone(), v=state.v.clone())
    ours, plain = CompiledStack([run], [copied], images), plain_stack(run, state, images)
    before = plain.buffers.flat.clone()
    ours.advance(3)
    plain.advance(3)
    way, rounding = float((plain.buffers.flat - before).norm()), 2**-24 * float(before.norm())
    assert float((ours.buffers.flat - plain.buffers.flat).norm()) < 1e-5 * way + rounding
    assert apart(ours.buffers.m, plain.buffers.m) < 1e-5
    assert apart(ours.buffers.v, plain.buffers.v) < 2e-6


@needs_the_step
@pytest.mark.parametrize(("latent", "objective", "M", "K"), [(ONE, "iwae", 1, 5), (TWO, "miwae", 2, 2)])
def test_five_hundred_updates_in_lockstep(
    latent: tuple[int, ...], objective: str, M: int, K: int, images: Tensor
) -> None:
    run = make_run(objective, M, K, latent=latent, train_images=600, max_steps=None)
    ours = CompiledStack([run], [start(run, images)], images)
    plain = plain_stack(run, start(run, images), images)
    before = plain.buffers.flat.clone()
    for _ in range(5):
        ours.advance(100)
        plain.advance(100)
        assert apart(ours.buffers.flat - before, plain.buffers.flat - before) < 0.01
    torch.testing.assert_close(ours.buffers.sums[:, :4], plain.buffers.sums[:, :4], rtol=1e-4, atol=0)


@needs_the_step
@pytest.mark.parametrize("latent", [ONE, TWO])
def test_killed_and_resumed_bit_for_bit(latent: tuple[int, ...], images: Tensor, tmp_path: Path) -> None:
    """A run at once, and in pieces, each from the checkpoint of the last; the sums of the history go on too."""
    run = make_run("iwae", 1, 3, latent=latent, protocol_name=PAPER, train_images=200, max_steps=None)
    whole = CompiledStack([run], [start(run, images)], images)
    whole.advance(40)
    state = start(run, images)
    for steps in (13, 1, 26):
        stack = CompiledStack([run], [state], images)
        stack.advance(steps)
        stack.write_back([state])
        save_checkpoint(tmp_path / CHECKPOINT, state, "own")
        loaded = load_checkpoint(tmp_path / CHECKPOINT)
        assert loaded is not None
        state = loaded
    assert torch.equal(state.flat, whole.buffers.flat[0])
    assert torch.equal(state.m, whole.buffers.m[0])
    assert torch.equal(state.v, whole.buffers.v[0])
    torch.testing.assert_close(state.sums, whole.buffers.sums[0], rtol=1e-12, atol=0)
    assert (state.step, state.summed) == (40, 40)


@needs_the_step
def test_runs_beside_each_other_do_not_meet(images: Tensor) -> None:
    runs = [make_run("iwae", 1, 6, max_steps=None), make_run("piwae", 2, 3, seed=1, max_steps=None)]
    together = CompiledStack(runs, [start(run, images) for run in runs], images)
    together.advance(10)
    for r, run in enumerate(runs):
        alone = CompiledStack([run], [start(run, images)], images)
        alone.advance(10)
        assert torch.equal(alone.buffers.flat[0], together.buffers.flat[r])


@needs_the_step
def test_the_state_is_copied_when_it_is_asked_for(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whether it is changes no bit; a loaded state replaces it."""
    copied: list[str] = []
    get = compiled_step.CompiledModel.get
    monkeypatch.setattr(
        compiled_step.CompiledModel, "get", lambda self, name, row: (copied.append(name), get(self, name, row))[1]
    )
    run = make_run("iwae", 1, 3, latent=TWO, max_steps=None)
    watched, left_alone = (CompiledStack([run], [start(run, images)], images) for _ in range(2))
    for _ in range(3):
        left_alone.advance(4)
        watched.advance(4)
        assert torch.isfinite(watched.buffers.flat).all()
    assert copied == ["flat", "m", "v"] * 3
    state = start(run, images)
    left_alone.take_history_point(0, state, 0.0)
    assert copied == ["flat", "m", "v"] * 3
    left_alone.write_back([state])
    assert copied == ["flat", "m", "v"] * 4
    for name in ("flat", "m", "v"):
        assert torch.equal(getattr(state, name), getattr(watched.buffers, name)[0])
    left_alone.advance(4)
    left_alone.load([start(run, images)])
    assert torch.equal(left_alone.buffers.flat[0], start(run, images).flat)


@needs_the_step
@pytest.mark.parametrize("instructions", ["native", "avx2"])
def test_normal_numbers_bit_for_bit(instructions: str, request: pytest.FixtureRequest) -> None:
    lib = compiled_step.library() if instructions == "native" else request.getfixturevalue("of_avx2")
    assert isinstance(lib, ctypes.CDLL)
    count = 100_001
    for seed, index in ((0, 0), (1, 3), (2, 2**33 + 5)):
        drawn = np.zeros(count + 64, np.float32)
        words = np.array(stream_key(seed, "noise"), np.uint32)
        lib.normal_numbers(drawn.ctypes.data, count, index, words.ctypes.data)
        expected = normal(count, torch.tensor([stream_key(seed, "noise")]), torch.tensor([index]))[0].numpy()
        assert np.array_equal(drawn[:count].view(np.int32), expected.view(np.int32))


def test_the_order_of_images() -> None:
    run = make_run(protocol_name=PAPER, train_images=107, max_steps=None)
    order = ImageOrder(run).of(3, 9)
    assert order.shape == (9, 20)
    # Five updates an epoch: two are left of the first, five are the second's, two the third's.
    assert len(np.unique(order[:2])) == 40
    assert len(np.unique(order[2:7])) == 100
    assert np.array_equal(order[4:], ImageOrder(run).of(7, 5))
    assert not np.array_equal(order[:2], ImageOrder(run).of(8, 2))
    in_turn = ImageOrder(make_run(train_images=107, max_steps=None)).of(4, 2)
    assert np.array_equal(in_turn.flatten(), [*range(80, 100), *range(20)])


def test_where_the_step_cannot_be_had(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines._tell.cache_clear()
    run = make_run()
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(compiled_step, "library", lambda: "no compiler")
            assert type(stack_for([run], [start(run, images)], images)) is PlainStack
    # Once, not for every run.
    assert capsys.readouterr().err.count("the compiled step is not used (no compiler)") == 1


@needs_the_step
def test_what_the_step_cannot_compute_is_computed_in_torch(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines._tell.cache_clear()

    def cubes(log_w: Tensor) -> Weights:
        w = normalized(log_w) ** 3
        return Weights(w, w, w)

    monkeypatch.setitem(objectives.OBJECTIVES, "cubes", Objective(cubes, elbo, "here"))
    coefficients.cache_clear()
    for run, why in [
        (make_run("cubes", 1, 5), "no terms for the weights of cubes"),
        (make_run(precision="float64"), "asks for float64"),
    ]:
        stack = stack_for([run], [start(run, images)], images)
        assert type(stack) is PlainStack
        stack.advance(1)
        assert why in capsys.readouterr().err
    coefficients.cache_clear()
    monkeypatch.setattr(compiled_step, "rounds_to_bfloat16", lambda: False)
    rounded = make_run(precision="bfloat16")
    assert type(stack_for([rounded], [start(rounded, images)], images)) is PlainStack
    assert "no instruction that multiplies bfloat16" in capsys.readouterr().err
    backward_only = make_run(precision="bfloat16-backward")
    with pytest.raises(UserError, match=r"only the compiled step computes in bfloat16-backward.*choose float32"):
        stack_for([backward_only], [start(backward_only, images)], images)
    run = make_run()
    assert type(stack_for([run], [start(run, images)], images)) is CompiledStack


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        (compiled_step.SWITCH, "off", "ELBO_COMPILED is off"),
        ("CC", "no-such-compiler", "there is no C compiler 'no-such-compiler'"),
        ("CC", "false", "false does not compile it"),
    ],
)
def test_why_there_is_no_library(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(variable, value)
    why = compiled_step.library.__wrapped__()
    assert isinstance(why, str)
    assert expected in why


@needs_the_step
@pytest.mark.parametrize("content", [b"", b"\x7fELF cut short"])
def test_a_damaged_library_in_the_cache_is_built_again(
    content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled_step, "build", lambda path, compiler: path)
    path = compiled_step.library.__wrapped__()
    assert isinstance(path, Path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert compiled_step.library.__wrapped__() == path


CHECKED = {
    "vae": (ONE, "vae", 1, 1, CODE),
    "iwae": (ONE, "iwae", 1, 5, PAPER),
    "miwae": (TWO, "miwae", 3, 4, CODE),
    "ciwae": (TWO, "ciwae", 1, 10, PAPER),
    "rws-dreg": (TWO, "rws-dreg", 1, 6, CODE),
    "piwae": ((2,), "piwae", 2, 5, CODE),
    "vr-max": (ONE, "vr-max", 1, 30, CODE),
}
CHECKSUMS = {
    "vae": "11d67c1c21e415dd",
    "iwae": "56f754a46f6b129e",
    "miwae": "eee2b097548c5656",
    "ciwae": "7ab8f7cb39d49fba",
    "rws-dreg": "ae2f850a59535da3",
    "piwae": "1a85c988d6af8bd2",
    "vr-max": "6b85a8674c22d30e",
}
"""With AVX-512, found alike on an AMD EPYC (Zen 4) and on an Intel Xeon (model 207); AVX2 adds in another order."""


@needs_the_step
@pytest.mark.skipif("avx512dq" not in processor(), reason="checksums are of AVX-512")
@pytest.mark.parametrize("name", CHECKED)
def test_the_bits_of_fifty_updates(name: str, images: Tensor) -> None:
    """A change that is to change no result changes none of these; one that is to raises `algorithm_version`."""
    latent, objective, M, K, protocol_name = CHECKED[name]
    run = make_run(objective, M, K, latent=latent, protocol_name=protocol_name, max_steps=None, train_images=400)
    stack = CompiledStack([run], [start(run, images)], images)
    stack.advance(50)
    digest = hashlib.sha256()
    for tensor in (stack.buffers.flat, stack.buffers.m, stack.buffers.v, stack.buffers.sums):
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest()[:16] == CHECKSUMS[name]
