"""What params.yaml and the launcher's options may ask of a machine: a device, and an engine that makes the updates.

Needs the standard library alone.
"""

from __future__ import annotations

from typing import Literal, get_args

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[str, ...] = get_args(Device)
Engine = Literal["auto", "fused", "compiled", "graph", "plain"]
"""How updates are made; `auto` takes the best way that works here."""
ENGINES: tuple[str, ...] = get_args(Engine)
AUTO, FUSED, COMPILED, GRAPH, PLAIN = ENGINES
