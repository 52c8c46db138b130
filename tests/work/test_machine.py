"""Where to compute, and what is said when it is not there."""

from __future__ import annotations

import os

import pytest
import torch

from pipeline.errors import UserError
from pipeline.work.machine import Machine, resolve_device, resolve_workers, this_machine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def has_cuda(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: answer)


def test_asking_for_cuda_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    has_cuda(monkeypatch, False)
    with pytest.raises(UserError) as caught:
        this_machine("cuda", "auto", 30.0)
    text = str(caught.value)
    assert text.startswith("params.yaml: device: cuda was asked for, but torch ")
    assert "sees no CUDA GPU here; allowed: auto, cpu, or cuda on a machine with an NVIDIA GPU" in text


@pytest.mark.parametrize(
    ("name", "available", "expected"),
    [("auto", False, CPU), ("auto", True, CUDA), ("cpu", True, CPU), ("cpu", False, CPU), ("cuda", True, CUDA)],
)
def test_device(name: str, available: bool, expected: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    has_cuda(monkeypatch, available)
    assert resolve_device(name) == expected


def test_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    # The usable cores: a container or `taskset` may allow fewer than the machine has.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 6}, raising=False)
    assert resolve_workers("auto", CPU) == 3
    assert resolve_workers(7, CPU) == 7
    assert resolve_workers("auto", CUDA) == resolve_workers(7, CUDA) == 1


def test_automatic_workers_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert resolve_workers("auto", CPU) >= 1


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    has_cuda(monkeypatch, False)
    assert this_machine("auto", 2, 1.5) == Machine(CPU, 2, 1.5)
