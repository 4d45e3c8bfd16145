"""The order of convergence of every sampler of the command line, and the table of it in the docs.

`tests/convergence.py` measures: the strong order of deterministic samplers, for multistep methods with values on the
exact flow to start with and in the next column without, and the weak order of stochastic ones (of the variance). Slopes
are over the last two halvings of the steps above rounding, under VP with even steps in log-SNR:

    python -m benchmarks.orders        writes the table into docs/samplers.md

The tests take the same measurements under every SDE.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from samplers import TableSampler
from samplers.multistep import Multistep
from scoresde import VPSDE
from sde_configs import default
from sde_configs.build import SAMPLERS, build_sampler
from tests.convergence import asymptotic_slopes, errors_on_a_gaussian, slopes, variance_errors

PAGE = Path(__file__).parent.parent / "docs" / "samplers.md"
BEGIN = "<!-- orders: begin -->\n"
END = "<!-- orders: end -->\n"


def measured(sampler: TableSampler) -> tuple[float, float | None]:
    """The sampler's slope, and for a multistep method that of a start with fewer values (both under VP)."""
    if sampler.noise != "none":
        return min(slopes(variance_errors(sampler, VPSDE(), "log_snr", -0.4, 2.5)[1])), None
    ramped = strong_slope(sampler, exact_history=False) if isinstance(sampler, Multistep) else None
    return strong_slope(sampler, exact_history=True), ramped


def strong_slope(sampler: TableSampler, exact_history: bool) -> float:
    """The slope of a deterministic sampler's errors."""
    return min(asymptotic_slopes(errors_on_a_gaussian(sampler, VPSDE(), "log_snr", exact_history)))


def rows() -> Iterator[str]:
    """A line of the table for each name of the command line, with the configuration's settings."""
    for name, cls in SAMPLERS.items():
        sampler = build_sampler(default.get_config(), name, None)
        if not isinstance(sampler, TableSampler) or sampler.order == 0:
            continue
        slope, ramped = measured(sampler)
        kind = "strong" if sampler.noise == "none" else "weak"
        start = "" if ramped is None else f"{ramped:.2f}"
        yield f"| `{name}` | `{cls.__name__}` | {kind} | {sampler.order} | {slope:.2f} | {start} |"


def table() -> str:
    """The table of the page."""
    head = "| `--sampler` | class | kind | declared order | measured | from a start with fewer values |\n"
    return head + "|---|---|---|---|---|---|\n" + "\n".join(rows()) + "\n"


def main() -> None:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1])
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
