"""Reported against measured: does a value that was copied from a document agree with our runs?

A reported value is mostly one run. Whether it agrees is whether one more run of ours could have
given it: whether it lies within the 95 % prediction interval (Student's t: mean ± t s √(1 + 1/n)) or
within the range of our runs, which for runs that either succeed or fail is the wider. A reported
mean of m seeds is held against mean ± t s √(1/m + 1/n), or by Welch's interval where its own spread
is given. The digits that are written count: 0.19 stands for 0.185 to 0.195.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from scipy import stats

from assay.core.config import canonical, flatten
from assay.core.engine import Metric
from assay.core.evidence import Selection
from assay.core.render import NONE, interval, mean_std, row_markdown
from assay.core.statistics import moments
from assay.core.study import Reported, Study
from assay.core.table import Cell, build_table

Answer = Literal["agrees", "differs", "not comparable"]
ANSWERS: tuple[Answer, ...] = ("agrees", "differs", "not comparable")
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication:
    """What a reported value is beside ours.

    Attributes:
        answer: Whether they agree.
        why: The reason, in a few words.
        low: Lower limit of what a value like it could have been with us; None if unknown.
        high: Upper limit.
        n: Runs of ours.
    """

    answer: Answer
    why: str
    low: float | None = None
    high: float | None = None
    n: int = 0


def replicate(
    entry: Reported,
    values: Sequence[float],
    *,
    bounds: tuple[float | None, float | None] = (None, None),
) -> Replication:
    """Hold a reported value against ours.

    Args:
        entry: The reported value.
        values: The finite final values of the runs of its arm and cell.
        bounds: Smallest and largest possible value of the metric, where there are such.
    """
    n = len(values)
    if entry.not_comparable:
        return Replication(answer="not comparable", why=entry.not_comparable, n=n)
    if not n:
        return Replication(answer="not comparable", why="no run of ours has this value")
    slack = _half_unit(entry.value)
    mean, spread, _ = moments(values)
    if spread == 0:
        same = abs(entry.value - mean) <= slack
        if not same and n == 1:
            why = "one run of ours, which tells nothing of the spread"
            return Replication(answer="not comparable", why=why, n=n)
        why = "equal to the digits that are written" if same else "all of ours have one value"
        return Replication(
            answer="agrees" if same else "differs", why=why, low=mean, high=mean, n=n
        )
    low, high, what = _limits(entry, values, mean, spread)
    low = low if bounds[0] is None else max(low, bounds[0])
    high = high if bounds[1] is None else min(high, bounds[1])
    inside = low - slack <= entry.value <= high + slack
    return Replication(
        answer="agrees" if inside else "differs",
        why=f"{'within' if inside else 'outside'} {what}",
        low=low,
        high=high,
        n=n,
    )


def _limits(
    entry: Reported, values: Sequence[float], mean: float, spread: float
) -> tuple[float, float, str]:
    """Where the reported value could lie, and what these limits are."""
    n, m = len(values), entry.n or 1
    if m > 1 and entry.std is not None:
        errors = spread**2 / n, entry.std**2 / m
        freedom = sum(errors) ** 2 / (errors[0] ** 2 / (n - 1) + errors[1] ** 2 / (m - 1))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(sum(errors))
        return mean - half, mean + half, f"Welch's interval around our mean, n {n} and {m}"
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread * math.sqrt(1 / n + 1 / m)
    low, high = mean - half, mean + half
    if m > 1:
        return low, high, f"what a mean of {m} more seeds would be"
    return min(low, *values), max(high, *values), "what one more run would be"


def _half_unit(value: float) -> float:
    """Half of the last digit that is written."""
    exponent = Decimal(repr(value)).as_tuple().exponent
    assert isinstance(exponent, int)
    return 0.5 * 10.0**exponent


def reported_markdown(study: Study, selection: Selection) -> Iterator[str]:
    """The table of a study's section: values copied from documents, beside ours."""
    if not study.reported:
        return
    lines = [row_markdown([*REPORTED_HEADS]), row_markdown(["---"] * len(REPORTED_HEADS))]
    for entry, rows, found in replications(study, selection):
        at = flatten(entry.at)
        cell = ", ".join(f"{k} = {_as_text(v)}" for k, v in at.items()) or "all"
        source = entry.source + (f", line {entry.line}" if entry.line is not None else "")
        expected = NONE if found.low is None else interval(found.low, found.high)
        lines.append(
            row_markdown([f"`{entry.metric}`", entry.arm, cell, _as_copied(entry), source,
                          entry.note or NONE, _ours(rows), expected,
                          f"{found.answer}: {found.why}"])
        )  # fmt: skip
    yield "### Reported (not evidence)\n"
    yield "\n".join(lines) + "\n"
    yield "Copied from documents, not computed from runs: never evidence. No claim rests on them.\n"


REPORTED_HEADS = ("metric", "arm", "cell", "reported", "source", "note", "ours: mean ± std [n]",
                  "expected of ours", "verdict")  # fmt: skip


def replications(
    study: Study, selection: Selection
) -> Iterator[tuple[Reported, list[Cell], Replication]]:
    """Every reported value with the rows of ours that it is about, and how it compares."""
    metrics = list(dict.fromkeys(entry.metric for entry in study.reported))
    rows = build_table(study, selection, metrics).rows
    for entry in study.reported:
        at = flatten(entry.at)
        same = [row for row in rows if (row.metric, row.arm) == (entry.metric, entry.arm)]
        ours = [row for row in same if all(row.cell[key] == at[key] for key in at)]
        values = [v for v in ours[0].seeds.values() if math.isfinite(v)] if len(ours) == 1 else []
        meaning = study.metrics.get(entry.metric, Metric(says=""))
        found = replicate(_at_scale(entry, study.scale), values, bounds=(meaning.low, meaning.high))
        if len(ours) > 1 and not entry.not_comparable and entry.scale in (None, study.scale):
            why = f"it names {len(ours)} cells of ours at once"
            found = Replication(answer="not comparable", why=why)
        yield entry, ours, found


def _ours(rows: Sequence[Cell]) -> str:
    if len(rows) == 1:
        return mean_std(rows[0])
    return f"{NONE} ({len(rows)} cells)" if rows else NONE


def _as_copied(entry: Reported) -> str:
    std = "" if entry.std is None else f" ± {entry.std:.15g}"
    return f"{entry.value:.15g}{std}" + ("" if entry.n is None else f" [{entry.n}]")


def _at_scale(entry: Reported, scale: str) -> Reported:
    """The entry, said to be not comparable where it was reported at another scale."""
    if entry.scale is None or entry.scale == scale or entry.not_comparable:
        return entry
    why = f"reported at the scale {entry.scale or 'of the file itself'}"
    return replace(entry, not_comparable=why)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else canonical(value)


def reported_page(sections: Mapping[str, str]) -> str:
    """All reported values of a log, beside ours: the tables of its sections as one.

    Args:
        sections: Study id → its section, as it stands in the log.
    """
    heads = row_markdown(["study", *REPORTED_HEADS])
    own_heads = row_markdown([*REPORTED_HEADS])
    lines = []
    for study, text in sections.items():
        # Sections that an older version wrote have other columns: told there only.
        for table in re.findall(rf"^{re.escape(own_heads)}\n\|[- |]+\|\n((?:\|.*\n)+)", text, re.M):
            lines += [f"| {study} {row}" for row in table.splitlines()]
    if not lines:
        return ""
    rule = row_markdown(["---"] * (1 + len(REPORTED_HEADS)))
    counts = [sum(f" {answer}: " in line for line in lines) for answer in ANSWERS]
    told = ", ".join(f"{n} {answer}" for n, answer in zip(counts, ANSWERS, strict=True))
    return "\n".join(
        ["## Reported and measured\n", f"{len(lines)} value(s) copied from documents: {told}. "
         "Never evidence: a verdict here says whether one more run of ours could have given it.\n",
         heads, rule, *lines, ""]
    )  # fmt: skip
