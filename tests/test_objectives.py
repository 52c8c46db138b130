"""Every estimator against autograd on its bound, and the identities between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from examples.one_run import Model
from pipeline.errors import UserError
from pipeline.experiments.grid import build_cohorts
from pipeline.models.log_weights import backward, forward
from pipeline.models.networks import Parameters, count_parameters
from pipeline.objectives import OBJECTIVES, Objective, Weights, check_estimator, elbo, miwae_bound, uniform, vae
from tests.experiments.test_params import small
from tests.plain import by_name, model_of, pipeline_gradients

LATENTS = {1: (7,), 2: (9, 7)}
PARAMETERS: dict[str, tuple[float, ...]] = {"ciwae": (0.3,), "dreg": (0.3,), "vr": (0.5, -1.5, 2.5, 1.0)}
"""Values at which an estimator with a parameter is tested."""
BATCH = 4


def random_problem(layers: int, T: int, runs: int = 1) -> tuple[Parameters, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(layers * 100 + T)
    latent = LATENTS[layers]
    flat = 0.3 * torch.randn(runs, count_parameters(latent), generator=generator, dtype=torch.float64)
    x = torch.bernoulli(torch.full((runs, BATCH, 784), 0.2, dtype=torch.float64), generator=generator)
    eps = [torch.randn(runs, T, BATCH, units, generator=generator, dtype=torch.float64) for units in latent]
    return Parameters(latent, flat), x, eps


def by_hand(
    p: Parameters, x: Tensor, eps: list[Tensor], weights: Callable[[Tensor], Weights], M: int, K: int
) -> dict[str, Tensor]:
    f = forward(p, x, eps, backward_follows=True)
    w = weights(f.log_w[0].view(M, K, BATCH))
    flat = {id(part): part.reshape(1, M * K, BATCH) for part in w}
    return pipeline_gradients(backward(p, f, Weights(*(flat[id(part)] for part in w))))


def by_autograd(model: Model, decoder_climbs: Tensor, encoder_climbs: Tensor) -> dict[str, Tensor]:
    """Gradients in the decoder's parameters of the one, in the encoder's of the other."""
    of_encoder = torch.autograd.grad(encoder_climbs, list(model.encoder.parameters()), retain_graph=True)
    of_decoder = torch.autograd.grad(decoder_climbs, list(model.decoder.parameters()))
    return by_name(model, of_encoder + of_decoder)


def assert_equal_gradients(ours: dict[str, Tensor], oracle: dict[str, Tensor]) -> None:
    for name, expected in oracle.items():
        scale = expected.abs().max().clamp(min=1)
        assert ((ours[name] - expected).abs().max() / scale).item() < 1e-9, name


def arguments(name: str) -> list[tuple[float, ...]]:
    """What an estimator is called with besides log w: nothing, or one value of its parameter."""
    return [(value,) for value in PARAMETERS[name]] if OBJECTIVES[name].parameter else [()]


SPLITS = [(1, 1), (1, 6), (6, 1), (2, 3), (3, 2)]
CASES = [
    (name, args, M, K)
    for name, objective in OBJECTIVES.items()
    for args in arguments(name)
    for M, K in SPLITS
    if not (objective.single_M and M > 1) and not (objective.single_K and K > 1)
]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "args", "M", "K"), [case for case in CASES if not OBJECTIVES[case[0]].drops_score])
def test_gradient_is_that_of_the_bound(name: str, args: tuple[float, ...], M: int, K: int, layers: int) -> None:
    objective = OBJECTIVES[name]
    p, x, eps = random_problem(layers, M * K)
    ours = by_hand(p, x, eps, lambda log_w: objective.weights(log_w, *args), M, K)

    model = model_of(p)
    log_w = model.log_weights(x[0], [e[0] for e in eps]).view(M, K, BATCH)
    bound = objective.bound(log_w, *args).sum()
    encoder_bound = (objective.encoder_bound or objective.bound)(log_w, *args).sum()
    assert_equal_gradients(ours, by_autograd(model, bound, encoder_bound))


ENCODER_WEIGHT: dict[str, Callable[..., Tensor]] = {
    "stl": lambda w: w,
    "iwae-dreg": lambda w: w.square(),
    "rws-dreg": lambda w: w - w.square(),
    "dreg": lambda w, alpha: alpha * w + (1 - 2 * alpha) * w.square(),
}
"""What multiplies d log w / d h * d h / d phi, as the papers write it."""


def test_every_estimator_without_score_term_has_its_oracle() -> None:
    assert set(ENCODER_WEIGHT) == {name for name, objective in OBJECTIVES.items() if objective.drops_score}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", list(ENCODER_WEIGHT))
def test_estimators_without_score_term(name: str, layers: int) -> None:
    """Autograd with q's parameters detached inside log q only, as the papers of these estimators define them.

    The samples are not detached there: with two layers the path through h1 into log q(h2 | h1) stays.
    """
    K, (args,) = 5, arguments(name)
    p, x, eps = random_problem(layers, K)
    ours = by_hand(p, x, eps, lambda log_w: OBJECTIVES[name].weights(log_w, *args), 1, K)
    model = model_of(p)
    log_w = model.log_weights(x[0], [e[0] for e in eps], hold_q=True)
    w = torch.softmax(log_w.detach(), 0)
    decoder_climbs, encoder_climbs = (w * log_w).sum(), (ENCODER_WEIGHT[name](w, *args) * log_w).sum()
    assert_equal_gradients(ours, by_autograd(model, decoder_climbs, encoder_climbs))


@pytest.mark.parametrize("layers", [1, 2])
def test_log_w_is_the_textbook_one(layers: int) -> None:
    p, x, eps = random_problem(layers, 6)
    expected = model_of(p).log_weights(x[0], [e[0] for e in eps]).detach()
    torch.testing.assert_close(forward(p, x, eps).log_w[0], expected, rtol=1e-12, atol=1e-9)


def assert_same(left: Weights, right: Weights) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a.reshape(-1, BATCH), b.reshape(-1, BATCH), rtol=1e-12, atol=1e-14)


def test_identities() -> None:
    log_w = 30 * torch.randn(1, 12, BATCH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = {name: objective.weights for name, objective in OBJECTIVES.items()}
    assert_same(weights["miwae"](log_w), weights["iwae"](log_w))
    assert_same(weights["piwae"](log_w), weights["iwae"](log_w))
    assert_same(weights["ciwae"](log_w, 0.0), weights["iwae"](log_w))
    assert_same(weights["miwae"](log_w.view(12, 1, BATCH)), weights["vae"](log_w.view(12, 1, BATCH)))
    assert_same(weights["ciwae"](log_w, 1.0), weights["vae"](log_w.view(12, 1, BATCH)))
    # With M != K the two ways to split 12 samples must differ.
    assert not torch.allclose(
        weights["miwae"](log_w.view(3, 4, BATCH)).theta.reshape(-1),
        weights["miwae"](log_w.view(4, 3, BATCH)).theta.reshape(-1),
    )
    one = log_w[:, :1]
    for name in ("iwae", "miwae", "piwae", "vr-max"):
        assert_same(weights[name](one), weights["vae"](one))
    for name in ("ciwae", "vr"):
        assert_same(weights[name](one, 0.4), weights["vae"](one))


def test_identities_of_the_later_estimators() -> None:
    log_w = 3 * torch.randn(1, 12, BATCH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = {name: objective.weights for name, objective in OBJECTIVES.items()}
    assert_same(weights["vr"](log_w, 0.0), weights["iwae"](log_w))
    assert_same(weights["vr"](log_w, 1.0), weights["vae"](log_w.view(12, 1, BATCH)))
    assert_same(weights["vr"](log_w, -1e6), weights["vr-max"](log_w))
    assert_same(weights["dreg"](log_w, 0.0), weights["iwae-dreg"](log_w))
    assert_same(weights["dreg"](log_w, 1.0), weights["rws-dreg"](log_w))
    stl, half = weights["stl"](log_w), weights["dreg"](log_w, 0.5)
    torch.testing.assert_close(2 * half.path, stl.path)
    torch.testing.assert_close(weights["iwae-dreg"](log_w).path + weights["rws-dreg"](log_w).path, stl.path)
    # With one sample STL is DReG: the ELBO without its score term.
    one = log_w[:, :1]
    assert_same(weights["stl"](one), weights["iwae-dreg"](one))
    assert not torch.allclose(weights["stl"](one).score, weights["vae"](one).score)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.5, 1.0, 2.0])
def test_renyi_bound_is_log_px_minus_the_renyi_divergence(alpha: float) -> None:
    """Li & Turner's definition, where it has a closed form: z ~ N(0, 1), x | z ~ N(z, 1), q = N(m, s^2)."""
    x, m, s = 1.4, 0.5, 0.65
    normal = torch.distributions.Normal
    quantiles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    z = m + s * torch.special.ndtri(quantiles)
    log_w = normal(0.0, 1.0).log_prob(z) + normal(z, 1.0).log_prob(torch.tensor(x)) - normal(m, s).log_prob(z)
    bound = OBJECTIVES["vr"].bound(log_w.view(1, -1, 1), alpha).item()
    mean, variance = x / 2, 0.5
    between = alpha * variance + (1 - alpha) * s**2
    if alpha == 1:
        divergence = math.log(math.sqrt(variance) / s) + (s**2 + (m - mean) ** 2) / (2 * variance) - 0.5
    else:
        divergence = math.log(math.sqrt(variance) / s) + math.log(variance / between) / (2 * (alpha - 1))
        divergence += alpha * (m - mean) ** 2 / (2 * between)
    log_px = normal(0.0, math.sqrt(2)).log_prob(torch.tensor(x)).item()
    assert bound == pytest.approx(log_px - divergence, abs=2e-4)


@pytest.mark.parametrize(("name", "args", "M", "K"), CASES)
def test_decoder_weights_sum_to_one(name: str, args: tuple[float, ...], M: int, K: int) -> None:
    log_w = 50 * torch.randn(M, K, BATCH, generator=torch.Generator().manual_seed(1))
    weights = OBJECTIVES[name].weights(log_w, *args)
    torch.testing.assert_close(weights.theta.sum((0, 1)), torch.ones(BATCH))
    assert all(part.shape == log_w.shape for part in weights)
    assert OBJECTIVES[name].bound(log_w, *args).shape == (BATCH,)


def test_bounds_are_ordered_and_survive_large_log_weights() -> None:
    log_w = 400 * torch.randn(4, 3, BATCH, generator=torch.Generator().manual_seed(2)) - 3000
    elbo, miwae, iwae = (OBJECTIVES[name].bound(log_w) for name in ("vae", "miwae", "piwae"))
    assert torch.isfinite(iwae).all()
    assert (elbo <= miwae).all()
    assert (miwae <= iwae).all()


def test_parameter_counts() -> None:
    """Worked out by hand from the widths of Burda et al., section 5; each product is (inputs + 1) * outputs."""
    assert count_parameters((50,)) == 785 * 200 + 201 * 200 + 2 * 201 * 50 + 51 * 200 + 201 * 200 + 201 * 784
    encoder = 785 * 200 + 201 * 200 + 2 * 201 * 100 + 101 * 100 + 101 * 100 + 2 * 101 * 50
    decoder = 51 * 100 + 101 * 100 + 2 * 101 * 100 + 101 * 200 + 201 * 200 + 201 * 784
    assert count_parameters((100, 50)) == encoder + decoder


ODD: dict[str, tuple[Objective, str]] = {
    "returns-tensor": (
        Objective(lambda log_w: torch.softmax(log_w, 1), miwae_bound, "mine"),
        "gives Tensor instead of Weights(theta, path, score)",
    ),
    "two-parts": (
        Objective(lambda log_w: (uniform(log_w), uniform(log_w)), miwae_bound, "mine"),
        "gives tuple instead of Weights(theta, path, score)",
    ),
    "summed-over-k": (
        Objective(lambda log_w: Weights(*3 * [torch.softmax(log_w, 1).sum(1)]), miwae_bound, "mine"),
        "theta is to be a tensor [1, 5, 3] for log_w [1, 5, 3], not [1, 3]",
    ),
    "mean-bound": (
        Objective(lambda log_w: Weights(*3 * [uniform(log_w)]), lambda log_w: log_w.mean(), "mine"),
        "bound is to be a tensor [3] for log_w [1, 5, 3], not []",
    ),
    "odd-encoder-bound": (
        Objective(vae, elbo, "mine", encoder_bound=lambda log_w: log_w.mean(0)),
        "encoder_bound is to be a tensor [3] for log_w [1, 5, 3], not [5, 3]",
    ),
    "no-numbers": (
        Objective(lambda log_w: Weights(*3 * [(-1 - log_w.abs()).log()]), miwae_bound, "mine"),
        "theta is not finite for log_w between -1 and 1",
    ),
    "no-maximum": (
        Objective(lambda log_w: Weights(*3 * [log_w.exp() / log_w.exp().sum(1, keepdim=True)]), miwae_bound, "mine"),
        "theta is not finite for log_w between -551 and -549",
    ),
    "no-maximum-in-the-bound": (
        Objective(vae, lambda log_w: log_w.exp().mean((0, 1)).log(), "mine"),
        "bound is not finite for log_w between -551 and -549",
    ),
    "mean-for-maximum": (
        Objective(
            lambda log_w: Weights(*3 * [(w := (log_w - log_w.mean(1, keepdim=True)).exp()) / w.sum(1, keepdim=True)]),
            miwae_bound,
            "mine",
        ),
        "theta is not finite for log_w between -300 and 0",
    ),
    "counts": (
        Objective(lambda log_w: Weights(*3 * [(log_w > 0).long()]), miwae_bound, "mine"),
        "theta is to be of log_w's type, torch.float32, not torch.int64",
    ),
    "doubles": (
        Objective(lambda log_w: Weights(*3 * [uniform(log_w.double())]), miwae_bound, "mine"),
        "theta is to be of log_w's type, torch.float32, not torch.float64",
    ),
    "in-place": (
        Objective(lambda log_w: Weights(*3 * [log_w.sub_(log_w.amax(1, keepdim=True)).softmax(1)]), elbo, "mine"),
        "changes log_w",
    ),
    "across-images": (
        Objective(lambda log_w: Weights(*3 * [torch.softmax(log_w, 2)]), elbo, "mine"),
        "it is to depend on that image's log_w and nothing else",
    ),
    "random": (
        Objective(lambda log_w: Weights(*3 * [torch.rand_like(log_w)]), elbo, "mine"),
        "theta is another at a second call",
    ),
    "raises": (
        Objective(lambda log_w: Weights(*3 * [log_w.view(7, 7, 7)]), miwae_bound, "mine"),
        "raises RuntimeError for log_w [1, 5, 3]: shape",
    ),
    "my/est": (Objective(vae, elbo, "mine"), "a name becomes a folder's"),
    "My est": (Objective(vae, elbo, "mine"), "a name becomes a folder's"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_estimator_that_no_step_can_use_is_refused_at_the_door(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, message = ODD[name]
    monkeypatch.setitem(OBJECTIVES, name, objective)
    with pytest.raises(UserError) as caught:
        check_estimator(name, 1, 5, None)
    assert str(caught.value).startswith(f"pipeline/objectives.py: OBJECTIVES[{name!r}]: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    setting = {"objective": name, "K": 5}
    with pytest.raises(UserError, match="pipeline/objectives"):
        build_cohorts(small("experiments.first.settings", [setting]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_estimators_that_are_there_pass(name: str) -> None:
    entry = OBJECTIVES[name]
    M, K = (1 if entry.single_M else 3), (1 if entry.single_K else 4)
    check_estimator(name, M, K, 0.5 if entry.parameter else None)


def test_an_estimator_that_is_gone_is_named_before_training() -> None:
    with pytest.raises(UserError, match="unknown objective 'gone'; allowed: vae, iwae"):
        check_estimator("gone", 1, 5, None)
