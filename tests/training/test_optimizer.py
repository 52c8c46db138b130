"""Adam in both forms, against numbers worked out by hand and against PyTorch's own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.experiments.protocol import PROTOCOLS, Protocol
from pipeline.experiments.schedule import learning_rate
from pipeline.experiments.spec import Stage
from pipeline.training import optimizer
from pipeline.training.optimizer import AdamSchedule, LearningRates, second_moment_start
from tests.conftest import make_run

CODE, PAPER = PROTOCOLS["published-code"], PROTOCOLS["paper-text"]
CPU = torch.device("cpu")


def adam_ascent(
    theta: Tensor,
    m: Tensor,
    v: Tensor,
    pieces: list[Tensor],
    protocols: list[Protocol],
    rates: list[float],
    t: list[int],
) -> None:
    """An update with the constants of each run's update number t, from 1."""
    runs = [make_run(protocol=p, schedule=(Stage(1, rate),)) for p, rate in zip(protocols, rates, strict=True)]
    schedule = AdamSchedule(runs, [count - 1 for count in t], CPU)
    optimizer.adam_ascent(theta, m, v, pieces, schedule.at(torch.tensor([0])))


def test_two_steps_of_burdas_code_by_hand() -> None:
    """theta 0, m 0, v 1; gradients 2 then -1; rate .001; beta1 .99, beta2 .999, eps 1e-4."""
    theta, m, v = torch.zeros(1, 1).double(), torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    adam_ascent(theta, m, v, [torch.full_like(theta, 2.0)], [CODE], [0.001], [1])
    # The first step uses m_0 = 0, so theta stays; then m = .01 * 2, v = .999 + .001 * 4.
    assert theta.item() == 0
    assert m.item() == pytest.approx(0.02, rel=1e-12)
    assert v.item() == pytest.approx(1.003, rel=1e-12)
    adam_ascent(theta, m, v, [torch.full_like(theta, -1.0)], [CODE], [0.001], [2])
    expected = 0.001 * math.sqrt(1 - 0.999**2) / (1 - 0.99**2) * 0.02 / (math.sqrt(1.003) + 1e-4)
    assert theta.item() == pytest.approx(expected, rel=1e-12)
    assert m.item() == pytest.approx(0.99 * 0.02 - 0.01, rel=1e-12)
    assert v.item() == pytest.approx(0.999 * 1.003 + 0.001, rel=1e-12)


def test_the_papers_form_is_pytorchs() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(30, 50, generator=generator, dtype=torch.float64) * 1e-3
    oracle = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([oracle], lr=0.01, betas=(0.9, 0.999), eps=1e-4, maximize=True)
    theta = torch.zeros(1, 50, dtype=torch.float64)
    m, v = torch.zeros_like(theta), second_moment_start([PAPER], theta)
    for t, gradient in enumerate(gradients, start=1):
        oracle.grad = gradient.clone()
        optimizer.step()
        adam_ascent(theta, m, v, [gradient.unsqueeze(0)], [PAPER], [0.01], [t])
    torch.testing.assert_close(theta[0], oracle.detach(), rtol=1e-12, atol=1e-15)


def test_each_run_of_a_stack_keeps_its_own_constants() -> None:
    protocols = [CODE, PAPER, replace(CODE, adam_lagged=False), replace(PAPER, adam_eps_uncorrected=True)]
    rates, t = [0.001, 0.01, 0.002, 0.003], [1, 5, 7, 2]
    generator = torch.Generator().manual_seed(1)
    theta, m, gradient = (torch.randn(4, 9, generator=generator, dtype=torch.float64) for _ in range(3))
    v = torch.rand(4, 9, generator=generator, dtype=torch.float64)
    alone = [[tensor[r : r + 1].clone() for tensor in (theta, m, v)] for r in range(4)]
    adam_ascent(theta, m, v, [gradient[:, :4], gradient[:, 4:]], protocols, rates, t)
    for r, (own_theta, own_m, own_v) in enumerate(alone):
        adam_ascent(own_theta, own_m, own_v, [gradient[r : r + 1]], [protocols[r]], [rates[r]], [t[r]])
        for stacked, solo in zip((theta, m, v), (own_theta, own_m, own_v), strict=True):
            torch.testing.assert_close(stacked[r], solo[0], rtol=1e-14, atol=0)
    # Every switch matters: no two of the forms give the same step from the same state.
    steps = set()
    for p in (CODE, PAPER, *protocols[2:]):
        state = torch.zeros(1, 1).double(), torch.ones(1, 1).double() * 0.3, torch.ones(1, 1).double() * 0.01
        adam_ascent(*state, [torch.ones(1, 1).double()], [p], [0.01], [3])
        steps.add(round(state[0].item(), 12))
    assert len(steps) == 4


def test_second_moment_starts() -> None:
    start = second_moment_start([CODE, PAPER], torch.empty(2, 3))
    assert start.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_learning_rates_are_those_of_the_schedule() -> None:
    runs = [make_run(train_images=40), make_run(train_images=60, schedule=(Stage(5, 0.25),))]
    steps = torch.arange(15)
    expected = [[learning_rate(run, step) for step in range(15)] for run in runs]
    assert LearningRates(runs, CPU).at(steps).tolist() == expected


def test_constants_of_many_updates_are_those_of_each() -> None:
    runs = [make_run(train_images=40, protocol=p) for p in (CODE, PAPER, replace(PAPER, adam_eps_uncorrected=True))]
    schedule = AdamSchedule(runs, [0, 500, 3], CPU)
    many = schedule.at(torch.arange(30))
    for step in range(30):
        one = schedule.at(torch.tensor([step]))
        assert torch.equal(one.sizes[:, 0], many.sizes[:, step])
        assert torch.equal(one.eps[:, 0], many.eps[:, step])
        for r, (run, before) in enumerate(zip(runs, (0, 500, 3), strict=True)):
            p, t = run.protocol, before + step + 1
            root = math.sqrt(1 - p.adam_beta2**t)
            size = learning_rate(run, step) * root / (1 - p.adam_beta1**t)
            assert float(one.sizes[r, 0]) == pytest.approx(size, rel=1e-14)
            assert float(one.eps[r, 0]) == pytest.approx(1e-4 if p.adam_eps_uncorrected else 1e-4 * root, rel=1e-14)
