"""Bound prose: numbers in Markdown that name the runs they come from, and are checked.

    The scaled arm reached 0.664±0.477<!--assay:d8/scaled test/exact_match--> on average,
    its best seed 99.8%<!--assay:d8/scaled test/exact_match seed=43-->.

After `assay:` come study/arm, the metric, and settings: grid values, `seed=`, or
`stat=` (mean, std, min, max, n). A check rounds the value to the digits that are written.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

from assay.core.errors import StudyError
from assay.core.evidence import StudyEvidence

NUMBER = r"[-−+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
BINDING = re.compile(
    rf"(?P<value>{NUMBER})(?:\s?(?:±|\+/-)\s?(?P<std>{NUMBER}))?\s?(?P<percent>%)?"
    r"[*_`]{0,3}<!--\s*assay:(?P<reference>[^\n]{0,300}?)-->"
)
MARK = re.compile(r"<!--\s*assay:(?!begin |end )")
STATISTICS: Mapping[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "std": statistics.stdev,
    "min": min,
    "max": max,
    "n": len,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A bound number that does not hold: where it stands, and a sentence."""

    line: int
    message: str


def check_text(text: str, evidence: Callable[[str], StudyEvidence]) -> list[Mismatch]:
    """Check every bound number of a text; linear in its length.

    Args:
        text: Markdown.
        evidence: Study id → its evidence; raises `StudyError` for an unknown study.
    """
    return [
        m for number, line in enumerate(text.split("\n"), 1) for m in _line(line, number, evidence)
    ]


def _line(line: str, number: int, evidence: Callable[[str], StudyEvidence]) -> Iterator[Mismatch]:
    if "assay:" not in line:
        return
    bindings = list(BINDING.finditer(line))
    if len(bindings) != len(MARK.findall(line)):
        yield Mismatch(line=number, message="a binding without a number right before it")
    for binding in bindings:
        try:
            problem = _check(binding, evidence)
        except StudyError as error:
            problem = str(error)
        if problem:
            yield Mismatch(line=number, message=f"{binding[0]!r}: {problem}")


def _check(binding: re.Match[str], evidence: Callable[[str], StudyEvidence]) -> str | None:
    values, statistic = _resolve(binding["reference"], evidence)
    if not values:
        return "no run that counts has this value"
    scale = 100 if binding["percent"] else 1
    try:
        problem = _compare(binding["value"], STATISTICS[statistic](values) * scale, statistic)
        if problem is None and binding["std"] is not None:
            problem = _compare(binding["std"], statistics.stdev(values) * scale, "std")
    except statistics.StatisticsError:
        return "a standard deviation needs at least two seeds"
    return problem


def _resolve(reference: str, evidence: Callable[[str], StudyEvidence]) -> tuple[list[float], str]:
    """The values that a reference names, and the statistic asked of them."""
    words = reference.split()
    place, _, arm = words[0].partition("/") if words else ("", "", "")
    settings = dict(word.partition("=")[::2] for word in words[2:])
    if len(words) < 2 or not arm:
        raise StudyError("a binding is assay:STUDY/ARM METRIC [seed=…] [stat=…] [SETTING=…]")
    found = evidence(place)
    seed, statistic = settings.pop("seed", None), settings.pop("stat", "mean")
    if statistic not in STATISTICS:
        raise StudyError(f"stat must be one of {', '.join(STATISTICS)}; got {statistic!r}")
    if arm not in found.arms:
        raise StudyError(f"study '{place}' has no arm '{arm}', only {', '.join(found.arms)}")
    cell = {}
    for key, choices in found.grid.items():
        chosen = [value for value in choices if str(value) == settings.pop(key, None)]
        if len(chosen) != 1:
            raise StudyError(f"say {key}=…, one of {', '.join(map(str, choices))}")
        cell[key] = chosen[0]
    if settings:
        raise StudyError(f"unknown setting {', '.join(settings)}")
    values = found.values(words[1], arm, cell)
    chosen_values = [v for s, v in values.items() if v is not None and seed in (None, s)]
    return [v for v in chosen_values if math.isfinite(v)], statistic


def _compare(written: str, value: float, what: str) -> str | None:
    """None if the written number is the value, rounded to the digits that are written."""
    shown = Decimal(written.replace(",", "").replace("−", "-"))
    exponent = shown.as_tuple().exponent
    assert isinstance(exponent, int)
    unit = Decimal(1).scaleb(exponent)
    exact = Decimal(repr(float(value)))
    # A tie may be rounded either way: people use both rules.
    rounded = {exact.quantize(unit, rule) for rule in (ROUND_HALF_UP, ROUND_HALF_EVEN)}
    return None if shown in rounded else f"{what} is {value:.6g} now"
