"""The results as text."""

from __future__ import annotations

from benchmarks import cpu, gpu
from benchmarks.cases import CASES, NLL, unit_flops
from benchmarks.contest import Results, Spread, ratios

Rates = dict[str, list[float]]
MISSING = "-"


def aligned(rows: list[list[str]]) -> str:
    """Columns two spaces apart, the first to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _rate(rates: Rates, name: str) -> str:
    return _number(Spread.of(rates[name]).median) if name in rates else MISSING


def _ratio(rates: Rates, numerator: str, denominator: str) -> str:
    if numerator not in rates or denominator not in rates:
        return MISSING
    spread = Spread.of(ratios(rates[numerator], rates[denominator]))
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _fraction(case_name: str, rates: list[float], ceiling: list[float]) -> str:
    own = [rate * unit_flops(CASES[case_name]) for rate in rates]
    return f"{Spread.of(ratios(own, ceiling)).median:.1%}"


def _unit(case_name: str) -> str:
    return "images/s" if case_name == NLL.name else "steps/s"


def cpu_tables(results: Results) -> str:
    head = ["case", "unit", "ours", "pythae", "ours / pythae", "plain", "ours / plain", "of product rate"]
    more = ["case", "ours, 1 process", "ours, paper", "paper / code", "pythae, every core", "ours / that", "layouts"]
    first, second = [head], [more]
    for name, rates in results.rates.items():
        title = CASES[name].title
        first.append(
            [
                title,
                _unit(name),
                _rate(rates, cpu.OURS),
                _rate(rates, cpu.PYTHAE),
                _ratio(rates, cpu.OURS, cpu.PYTHAE),
                _rate(rates, cpu.PLAIN),
                _ratio(rates, cpu.OURS, cpu.PLAIN),
                _fraction(name, rates[cpu.OURS], results.ceilings[cpu.PRODUCT]),
            ]
        )
        chosen = results.layouts[name]
        second.append(
            [
                title,
                _rate(rates, cpu.OURS_ALONE),
                _rate(rates, cpu.OURS_PAPER),
                _ratio(rates, cpu.OURS_PAPER, cpu.OURS),
                _rate(rates, cpu.PYTHAE_APART),
                _ratio(rates, cpu.OURS, cpu.PYTHAE_APART),
                ", ".join(f"{who} {chosen[who]}" for who in (cpu.OURS, cpu.PYTHAE, cpu.PLAIN) if who in chosen),
            ]
        )
    note = (
        "Medians over the rounds; ratios are medians (lowest-highest) of the ratios within each round. steps/s: steps\n"
        "times runs, whole machine, float32. layouts: processes x threads, the fastest of those tried."
    )
    return "\n\n".join([aligned(first), aligned(second), _cpu_ceilings(results), note])


def _cpu_ceilings(results: Results) -> str:
    median = {name: Spread.of(values).median for name, values in results.ceilings.items()}
    return (
        f"matrix product 1000x200x784: {median[cpu.PRODUCT] / 1e9:.0f} GFLOP/s on all cores,"
        f" {median[cpu.PRODUCT_ALONE] / 1e9:.0f} on one alone\n"
        f"memory copy, read + written: {median[cpu.COPY] / 1e9:.1f} GB/s on all cores,"
        f" {median[cpu.COPY_ALONE] / 1e9:.1f} on one alone"
    )


def gpu_tables(results: Results, hours: dict[str, float]) -> str:
    rows = [
        ["case", "unit", "engine", "R", "us / stacked step", "ours", "ours / plain", "ours / pythae", "of TF32 rate"]
    ]
    for name, rates in results.rates.items():
        for who in (who for who in rates if who.startswith(gpu.OURS)):
            stack = None if name == NLL.name else gpu.StackName.of(who)
            median = Spread.of(rates[who]).median
            rows.append(
                [
                    CASES[name].title,
                    _unit(name),
                    MISSING if stack is None else stack.engine,
                    MISSING if stack is None else str(stack.size),
                    MISSING if stack is None else _number(1e6 * stack.size / median),
                    _rate(rates, who),
                    _ratio(rates, who, gpu.PLAIN),
                    _ratio(rates, who, gpu.PYTHAE),
                    _fraction(name, rates[who], results.ceilings[gpu.TF32_PRODUCT]),
                ]
            )
    peak = Spread.of(results.ceilings[gpu.TF32_PRODUCT]).median / 1e12
    parts = [aligned(rows), f"matrix product 4096x4096x4096 in TF32: {peak:.1f} TFLOP/s"]
    if hours:
        projected = [[experiment, f"{value:.1f}"] for experiment, value in hours.items()]
        total = ["all", f"{sum(hours.values()):.1f}"]
        parts.append(aligned([["experiment, scale paper", "hours"], *projected, total]))
    return "\n\n".join(parts)
