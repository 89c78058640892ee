"""Numbers and tables as text: the same words in the terminal, the log and the README."""

import math
import re

from assay.core.claims import Judgement
from assay.core.table import Cell, Delta, Table

NONE = "–"
MOST_SEEDS = 5
MOST_REASONS = 6


def number(value: float | None) -> str:
    """A value with about four significant digits; never rounded to a false 0, 1 or integer."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return str(value)
    # What a sum of equal numbers is off by is no digit of theirs.
    if abs(value - round(value)) <= 1e-12 * abs(value) and abs(value) < 1e9:
        return f"{round(value):,}"
    if abs(value) < 0.001 or abs(value) >= 1e6:
        return f"{value:.4g}"
    digits = max(1, 3 - math.floor(math.log10(abs(value))))
    # 0.99996 is not 1: an error count of 4 in 100,000 must stay visible.
    while float(f"{value:.{digits}f}").is_integer() and digits < 15:
        digits += 1
    return f"{value:,.{digits}f}".rstrip("0")


def mean_std(row: Cell) -> str:
    """`0.664 ± 0.477 [6]`; failed, missing and non-finite runs are said."""
    if row.mean is None:
        text = f"{NONE} [0]"
    elif row.std is None:
        text = f"{number(row.mean)} [{row.n}]"
    else:
        text = f"{number(row.mean)} ± {number(row.std)} [{row.n}]"
    extra = [
        f"{count} {word}"
        for count, word in (
            (row.failed, "failed"),
            (row.no_value, "without it"),
            (row.missing - row.invalid, "not ended"),
            (row.invalid, "invalidated"),
            (row.non_finite, "not finite"),
        )
        if count
    ]
    return f"{text} ({', '.join(extra)})" if extra else text


def interval(low: float | None, high: float | None) -> str:
    """`0.164 to 1.165`, or a dash."""
    return NONE if low is None or high is None else f"{number(low)} to {number(high)}"


def delta(row: Cell, *, percent: bool = False) -> str:
    """`+0.46 (−0.13 to 1.05), 6 pairs` in the unit of the metric, or `+12 % (…), 6 pairs`."""
    return "" if row.delta is None else delta_text(row.delta, percent=percent)


def delta_text(d: Delta, *, percent: bool = False) -> str:
    """A difference in the unit of the metric, or in per cent of the baseline's mean."""
    basis = f"{d.n} pair{'' if d.n == 1 else 's'}" if d.paired else "unpaired"
    if percent:
        if d.percent is None:
            return f"{NONE} (the baseline's mean is 0), {basis}"
        limits = "" if d.percent_low is None else f" ({interval(d.percent_low, d.percent_high)} %)"
        return f"{'+' if d.percent > 0 else ''}{number(d.percent)} %{limits}, {basis}"
    sign = "+" if d.mean > 0 else ""
    limits = "" if d.low is None else f" ({interval(d.low, d.high)})"
    return f"{sign}{number(d.mean)}{limits}, {basis}"


def seed_values(row: Cell) -> str:
    """`42: 0.11, 43: –`: every run that ended, with its value; a dash where it has none."""
    return ", ".join(f"{seed}: {number(row.seeds.get(seed))}" for seed in row.run_ids)


def reasons(judgement: Judgement) -> list[str]:
    """What a reader must know beside a verdict, and its sentence does not say; briefly."""
    found = [_few_seeds(reason) for reason in judgement.reasons if reason not in judgement.why]
    more = len(found) - MOST_REASONS
    return [*found[:MOST_REASONS], f"and {more} more such remarks"] if more > 0 else found


def _few_seeds(reason: str) -> str:
    def shorter(match: re.Match[str]) -> str:
        seeds = match[1].split(", ")
        more = len(seeds) - MOST_SEEDS
        return f"(seed {', '.join(seeds[:MOST_SEEDS])} and {more} more)" if more > 0 else match[0]

    return re.sub(r"\(seed ([^()]*)\)", shorter, reason)


def table_markdown(table: Table, *, seeds: bool = False) -> str:
    """A Markdown table of the cells, and the notes below it."""
    if not table.rows:
        return "No metrics yet.\n"
    keys = list(table.rows[0].cell)
    compared = any(row.arm != table.baseline for row in table.rows)
    heads = ["arm", *keys, "metric", "mean ± std [n]", "95 % interval"]
    heads += [f"Δ to {table.baseline}"] if compared else []
    heads += ["seeds"] if seeds else []
    lines = [row_markdown(heads), row_markdown(["---"] * len(heads))]
    for row in table.rows:
        shown = [row.arm, *(str(row.cell[k]) for k in keys), f"`{row.metric}`"]
        shown += [mean_std(row), interval(row.low, row.high)]
        shown += [delta(row)] if compared else []
        lines.append(row_markdown([*shown, seed_values(row)] if seeds else shown))
    lines += ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join(lines) + "\n"


def row_markdown(cells: list[str]) -> str:
    """One line of a Markdown table; bars inside a cell are escaped."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
