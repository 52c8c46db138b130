"""How Burda et al. trained: what the paper says and what the authors' code does, as data.

Every difference is one named field, so that one detail can be switched alone. `published-code` is what
produced the published numbers; `paper-text` is the text of Burda et al. (2016), section 5, and where that is silent:
gradient of the batch mean, batches reshuffled every epoch, all training images, independent initial layers,
PyTorch's Adam, and the output bias of the code (without it training fails).

Each field names the lines of https://github.com/yburda/iwae that it was read from: optimizers.py, train.py and nnet.py
at commit ae2ed90, datasets.py and experiments.py at 8e601aa, iwae.py at 8fdcbab.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Protocol:
    """One way to train; the fields are the details on which the paper and the code differ."""

    adam_beta1: float
    """Decay of Adam's first moment: .99 in the code (optimizers.py:11), .9 in the paper."""
    second_moment_start: float
    """Adam's second moment before the first step: 1 in the code (optimizers.py:16), a warm-up; 0 in the paper."""
    adam_lagged: bool
    """The step uses the moments from before this gradient (code, optimizers.py:33, where Theano reads old values)."""
    adam_eps_uncorrected: bool
    """eps stands beside sqrt(v) (code, optimizers.py:30-33), not beside sqrt(v / (1 - beta2^t)) as in PyTorch."""
    gradient: str
    """`sum` over the images of a batch (code, iwae.py:161 and 169) or their `mean`; eps 1e-4 makes it no mere scale."""
    shuffle: bool
    """Visit the images in a new order every epoch; the code keeps one order (train.py:20-22)."""
    identical_initial_layers: bool
    """Draw every layer from a generator seeded alike (code, nnet.py:24-28): layers of equal shape start identical."""
    output_bias: bool
    """Start the decoder's output bias at the logit of the mean training image, clipped to [.001, .999] (code,
    datasets.py:62-64 and iwae.py:107-108)."""
    hold_out: bool
    """Leave the last 400 MNIST and 1,345 OMNIGLOT training images unused (code, datasets.py:21, 70 and 90)."""
    rounded_learning_rates: bool
    """1e-3, 7.2e-4, ... 1e-4 (code, experiments.py:119) in place of the exact .001 * 10^(-i/7)."""
    adam_beta2: float = 0.999
    """Decay of Adam's second moment: the same in both (optimizers.py:11)."""
    adam_eps: float = 1e-4
    """The same in both (optimizers.py:33)."""


Changes = Mapping[str, bool | float | str]
"""Other values of some of a protocol's fields, by field."""
GRADIENTS = ("sum", "mean")
RANGES = {
    "adam_beta1": (0.0, 0.9999),
    "adam_beta2": (0.0, 0.99999),
    "adam_eps": (1e-12, 1.0),
    "second_moment_start": (0.0, 1e6),
}
"""What each number of a protocol may be: a decay of 1 forgets nothing, so that Adam's correction divides by zero."""


PROTOCOLS: dict[str, Protocol] = {
    "published-code": Protocol(
        adam_beta1=0.99,
        second_moment_start=1.0,
        adam_lagged=True,
        adam_eps_uncorrected=True,
        gradient="sum",
        shuffle=False,
        identical_initial_layers=True,
        output_bias=True,
        hold_out=True,
        rounded_learning_rates=True,
    ),
    "paper-text": Protocol(
        adam_beta1=0.9,
        second_moment_start=0.0,
        adam_lagged=False,
        adam_eps_uncorrected=False,
        gradient="mean",
        shuffle=True,
        identical_initial_layers=False,
        output_bias=True,
        hold_out=False,
        rounded_learning_rates=False,
    ),
}


def check_changes(changes: Changes) -> None:
    """Raises: ValueError naming the field when there is no such field or the value is none of its type."""
    known = asdict(PROTOCOLS["published-code"])
    for field, value in changes.items():
        if field not in known:
            raise ValueError(f"unknown field {field!r} of a protocol; allowed: {', '.join(known)}")
        if field == "gradient" and value not in GRADIENTS:
            raise ValueError(f"gradient is {' or '.join(GRADIENTS)}, not {value!r}")
        number = isinstance(known[field], float) and isinstance(value, int | float) and not isinstance(value, bool)
        if not number and type(value) is not type(known[field]):
            kind = "a number" if isinstance(known[field], float) else "true or false"
            raise ValueError(f"{field} is {kind}, not {value!r}")
        low, high = RANGES.get(field, (-math.inf, math.inf))
        if isinstance(value, int | float) and number and not low <= value <= high:
            raise ValueError(f"{field} lies between {low:g} and {high:g}, not at {value!r}")


def with_changes(protocol: Protocol, changes: Changes) -> Protocol:
    """The protocol with these fields changed.

    Raises: ValueError as `check_changes`, and when a field has the value already.
    """
    check_changes(changes)
    for field, value in changes.items():
        if getattr(protocol, field) == value:
            raise ValueError(f"{field} is {value!r} already: nothing is switched")
    known = asdict(protocol)
    return replace(protocol, **{field: type(known[field])(value) for field, value in changes.items()})
