"""The results as Markdown."""

from __future__ import annotations

from benchmarks import ceiling, cpu, gpu, kernels, ours
from benchmarks.cases import CASES, unit_flops
from benchmarks.contest import Range, Results, ratios
from benchmarks.measure import Rate

MISSING = "–"
SLOW = 0.5
"""Share of the peak below which products are named."""


def markdown(rows: list[list[str]]) -> str:
    """The first row is the head; the first column stands to the left, the rest to the right."""
    head, *body = rows
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _spread(values: list[float], form: str | None = None) -> str:
    """`median (lowest to highest)`."""
    spread = Range.of(values)
    median, low, high = (
        _number(v) if form is None else f"{v:{form}}" for v in (spread.median, spread.low, spread.high)
    )
    return f"{median} ({low} to {high})"


def _cpu(rates: list[Rate]) -> list[float]:
    return [rate.cpu for rate in rates]


def _wall(rates: list[Rate]) -> list[float]:
    return [rate.wall for rate in rates]


def _contestants(results: Results) -> list[str]:
    """Those with a rate in some case, in the order in which they were measured."""
    names: dict[str, None] = {}
    for case in CASES:
        names |= dict.fromkeys(results.rates.get(case, {}))
    return list(names)


def _by_case(results: Results, names: list[str], cell: object) -> list[list[str]]:
    assert callable(cell)
    return [
        [CASES[case].title, *(cell(case, rates, name) if name in rates else MISSING for name in names)]
        for case, rates in results.rates.items()
        if case in CASES
    ]


def _titles(names: list[str], against: str | None) -> list[str]:
    return [f"ours at {against}" if name == cpu.AGAINST else name for name in names]


def cpu_tables(results: Results, against: str | None = None) -> str:
    """Rates by processor time and by the clock, ours beside each of the others, and the machine's ceilings."""
    everyone = _contestants(results)
    ways = [name for name in everyone if name in ours.VARIANTS]
    others = [name for name in everyone if name not in ours.VARIANTS]
    machine = results.rates.get(cpu.CEILINGS, {})
    titles = _titles(everyone, against)

    def rate(case: str, rates: dict[str, list[Rate]], name: str) -> str:
        return _spread(_cpu(rates[name]))

    def wall(case: str, rates: dict[str, list[Rate]], name: str) -> str:
        return _number(Range.of(_wall(rates[name])).median)

    def share(case: str, rates: dict[str, list[Rate]], name: str) -> str:
        flops = [rate.cpu * unit_flops(CASES[case]) for rate in rates[name]]
        return f"{Range.of(ratios(flops, _cpu(machine[ceiling.FMA]))).median:.0%}"

    parts = [
        "Updates (of the NLL: images) per second of processor time; medians over the rounds, lowest to highest.",
        markdown([["case", *titles], *_by_case(results, everyone, rate)]),
        "The same by the clock, medians.",
        markdown([["case", *titles], *_by_case(results, everyone, wall)]),
    ]
    for variant in ways:
        if others:
            parts += [
                f"How many times as fast as each other is {variant}; by processor time, within each round.",
                markdown([["case", *_titles(others, against)], *_by_case(results, others, _ratio_to(variant))]),
            ]
    if ceiling.FMA in machine:
        parts += [
            "Share of the peak of float32 multiply-adds that the matrix products of the case make up (rows left out"
            " of the backward pass count as if they were computed).",
            markdown([["case", *titles], *_by_case(results, everyone, share)]),
        ]
    if machine:
        parts += ["One core at its best.", _machine_table(machine)]
    if ceiling.FMA in machine and cpu.KERNELS in results.rates:
        parts += _kernels(results.rates[cpu.KERNELS], machine)
    return "\n\n".join(parts + _failures(results, against))


def _ratio_to(variant: str) -> object:
    def cell(case: str, rates: dict[str, list[Rate]], name: str) -> str:
        if variant not in rates:
            return MISSING
        return _spread(ratios(_cpu(rates[variant]), _cpu(rates[name])), ".2f")

    return cell


def _machine_table(machine: dict[str, list[Rate]]) -> str:
    rows = [["what", "per second of processor time"]]
    for name, rates in machine.items():
        unit = "GFLOP/s" if name in ceiling.OPERATIONS else "GB/s"
        rows.append([name, f"{_spread([rate / 1e9 for rate in _cpu(rates)])} {unit}"])
    return markdown(rows)


def _kernels(rates: dict[str, list[Rate]], machine: dict[str, list[Rate]]) -> list[str]:
    """Products of the compiled step, each beside the peak of its precision, and those that are far below it."""
    rows = [["product of the compiled step", "GFLOP/s", "share of the peak"]]
    slow = []
    for name, kernel_rates in rates.items():
        peak = machine[ceiling.BFLOAT16 if name.endswith(kernels.BFLOAT16_SUFFIX) else ceiling.FMA]
        share = Range.of(ratios(_cpu(kernel_rates), _cpu(peak))).median
        rows.append([name, _spread([rate / 1e9 for rate in _cpu(kernel_rates)]), f"{share:.0%}"])
        if share < SLOW:
            slow.append(name)
    warning = f"Below {SLOW:.0%} of the peak (a spilled register tile looks so): {'; '.join(slow)}."
    return [markdown(rows), *([warning] if slow else [])]


def _failures(results: Results, against: str | None) -> list[str]:
    """A line for each reason for which something was not measured."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case, failures in results.failures.items():
        for name, reason in failures.items():
            (title,) = _titles([name], against)
            who, what = (title, CASES[case].title) if case in CASES else (case, title)
            reasons.setdefault((who, reason), []).append(what)
    return [f"Not measured: {who} ({'; '.join(what)}): {reason}." for (who, reason), what in reasons.items()]


def gpu_tables(results: Results, hours: dict[str, float]) -> str:
    """Rates by the clock of stacks of several runs, and the hours that the papers' experiments would take."""
    rows = [["case", "engine", "R", "us / stacked update", "ours", "ours / plain", "ours / pythae", "of TF32 rate"]]
    peak = _wall(results.rates[gpu.CEILINGS][gpu.TF32_PRODUCT])
    for case, rates in results.rates.items():
        for who in (who for who in rates if who.startswith(gpu.OURS)):
            stack = None if CASES[case].is_nll else gpu.StackName.of(who)
            size = 1 if stack is None else stack.size
            run_rates = [rate * size for rate in _wall(rates[who])]
            median = Range.of(run_rates).median
            flops = [rate * unit_flops(CASES[case]) for rate in run_rates]
            rows.append(
                [
                    CASES[case].title,
                    MISSING if stack is None else stack.engine,
                    MISSING if stack is None else str(size),
                    MISSING if stack is None else _number(1e6 * size / median),
                    _number(median),
                    *(
                        _spread(ratios(run_rates, _wall(rates[peer])), ".2f") if peer in rates else MISSING
                        for peer in (gpu.PLAIN, gpu.PYTHAE)
                    ),
                    f"{Range.of(ratios(flops, peak)).median:.0%}",
                ]
            )
    parts = [markdown(rows), f"Matrix product 4096x4096x4096 in TF32: {Range.of(peak).median / 1e12:.1f} TFLOP/s."]
    if hours:
        projected = [[experiment, f"{value:.1f}"] for experiment, value in hours.items()]
        total = ["all", f"{sum(hours.values()):.1f}"]
        parts.append(markdown([["experiment, scale paper", "hours"], *projected, total]))
    return "\n\n".join(parts + _failures(results, None))
