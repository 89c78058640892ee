"""Bound prose: numbers in Markdown that name the runs they come from, and are checked.

    The scaled arm reached 0.664±0.477<!--assay:d8/scaled test/exact_match--> on average,
    its best seed 99.8%<!--assay:d8/scaled test/exact_match seed=43-->.

After `assay:` come study/arm, the metric, and settings: grid values, `seed=`, or
`stat=` (mean, std, min, max, n). A check rounds the value to the digits that are written. As in a
table, failed runs and values that are not finite are left out. Fenced code is not read.

Numbers of prose that carry no binding are counted, so that a reader is told of them.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, InvalidOperation, localcontext

from assay.core.config import unknown_key
from assay.core.errors import StudyError
from assay.core.evidence import StudyEvidence

NUMBER = r"[-−+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
VALUE = rf"(?<![\w.])(?P<value>{NUMBER})(?:\s?%?\s?(?:±|\+/-)\s?(?P<std>{NUMBER}))?"
WRITTEN = re.compile(rf"{VALUE}\s?(?P<percent>%)?[*_`]{{0,3}}$")
WINDOW = 80
"""How far before a mark its number may begin: bounded, so that a check is linear."""
MARK = re.compile(r"<!--\s{0,3}assay:(?!begin |end )(?P<reference>[^\n]{0,300}?)-->")
OPENING = re.compile(r"<!--\s{0,3}assay:(?!begin |end )")
FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
MONTH = (
    "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    "|Sep(?:t(?:ember)?)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\\.?"
)
DATE = (
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?:[T ]\d{2}:\d{2}(?::\d{2})?)?"
    rf"|\d{{1,2}} {MONTH}(?: \d{{4}})?|{MONTH} (?:\d{{1,2}}, )?\d{{4}}"
)
NO_PROSE = re.compile(
    r"\]\([^\s()]*(?:\([^\s()]*\))?[^\s()]*"  # Where a link goes; its words are prose.
    r"|\[\^?\d+\](?:(?=:)|(?<=\^\d\])|(?<=\^\d\d\]))"  # A footnote's or reference's number.
    r"|\b(?:https?|ftp|file)://[^\s|<>]+"
    r"|</?[A-Za-z][^<>]*>"
    rf"|(?<![\w.])(?:{DATE})(?!\w)"
)
HEADING = re.compile(r"[ >]{0,9}#{1,6} +\d+(?:\.\d+)*[.)]?(?= )")
ITEM = re.compile(r"[ \t>]*(?:[-*+] +)?(\d{1,9})[.)](?= )")
UNBOUND = re.compile(rf"(?<![A-Za-z][-‐])(?:{VALUE})")
SPECIAL = re.compile("`+|<!--")
PRECISION = 400
"""Digits of a comparison: any float beside any number that fits into the window."""
STATISTICS: Mapping[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "std": statistics.stdev,
    "min": min,
    "max": max,
    "n": len,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A bound number that does not hold: where it stands, and a sentence.

    `compared` is False if its runs are not on this machine, so that nothing can be said.
    """

    line: int
    message: str
    compared: bool = True


class RunsElsewhereError(StudyError):
    """The runs that a number is bound to are not on this machine."""


def check_text(text: str, evidence: Callable[[str], StudyEvidence]) -> list[Mismatch]:
    """Check every bound number of a text; linear in its length.

    Args:
        text: Markdown.
        evidence: Study id → its evidence; raises `StudyError` for an unknown study, and
            `RunsElsewhereError` for one whose runs are not on this machine.
    """
    found: list[Mismatch] = []
    for number, line in _outside_fences(text):
        if "assay:" in line:
            found += _line(line, number, evidence)
    return found


def bindings(text: str) -> list[tuple[int, str]]:
    """The bound numbers of a text as they are written, each with its mark, and their lines."""
    found = []
    for number, line in _outside_fences(text):
        for mark in MARK.finditer(line):
            written = _before(line, mark)
            found.append((number, (written[0] if written else "") + mark[0]))
    return found


def _before(line: str, mark: re.Match[str]) -> re.Match[str] | None:
    """The number right before a mark; not in the mark before it, which may stand close by."""
    start = max(0, mark.start() - WINDOW)
    return WRITTEN.search(line[start : mark.start()].rpartition("-->")[2])


def fixed_text(text: str, evidence: Callable[[str], StudyEvidence]) -> tuple[str, list[str]]:
    """A text in which every bound number that does not hold is what its runs say now.

    A number keeps its number of digits, its percent sign and its ±. What cannot be computed
    (an unknown study, no run, no number before the mark) stays as it is and is left to `check_text`.

    Args:
        text: Markdown.
        evidence: As for `check_text`.

    Returns:
        The text, and one sentence for each number that was changed: line, old and new.
    """
    lines = text.split("\n")
    changed: list[str] = []
    for number, line in _outside_fences(text):
        if "assay:" not in line:
            continue
        pieces: list[str] = []
        last = 0
        for mark in MARK.finditer(line):
            written = _before(line, mark)
            new = None if written is None else _corrected(written, mark["reference"], evidence)
            if written is not None and new is not None:
                pieces += [line[last : mark.start() - len(written[0])], new]
                last = mark.start()
                changed.append(f"line {number}: {written[0].rstrip()} → {new}")
        if pieces:
            lines[number - 1] = "".join(pieces) + line[last:]
    return "\n".join(lines), changed


def _corrected(
    written: re.Match[str], reference: str, evidence: Callable[[str], StudyEvidence]
) -> str | None:
    """A number as it should be written; None if it holds, or if nothing can be computed."""
    try:
        if _check(written, reference, evidence) is None:
            return None
        values, statistic = _resolve(reference, evidence)
        percent = bool(written["percent"])
        parts = {"value": STATISTICS[statistic](values)} if values else {}
        if written["std"] is not None and values:
            parts["std"] = statistics.stdev(values)
    except (StudyError, statistics.StatisticsError, OverflowError):
        return None
    text = written[0]
    for group in sorted(parts, key=lambda name: -written.start(name)):
        start, end = (place - written.start() for place in written.span(group))
        text = (
            text[:start] + _as_written(written[group], parts[group], percent=percent) + text[end:]
        )
    return text if parts else None


def _as_written(example: str, value: float, *, percent: bool) -> str:
    """A value with the digits, the sign style and the thousands commas of a written number."""
    with localcontext(prec=PRECISION):
        exponent = Decimal(example.replace(",", "").replace("−", "-")).as_tuple().exponent
        assert isinstance(exponent, int)
        exact = Decimal(repr(float(value))) * (100 if percent else 1)
        unit = Decimal(1).scaleb(exponent)
        rounded = exact.quantize(unit, ROUND_HALF_EVEN)
        if rounded == 0 and exact != 0 and "e" not in example.lower():
            # More digits than were written, or a small value would be written as none.
            rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted()), ROUND_HALF_EVEN)
        if "e" in example.lower():
            return f"{rounded:e}"
        shown = f"{rounded:,f}" if "," in example else f"{rounded:f}"
    if example.startswith("+") and not shown.startswith("-"):
        shown = f"+{shown}"
    return shown.replace("-", "−") if "−" in example else shown


def unbound_numbers(text: str) -> list[str]:
    """The numbers in prose that no binding follows, as written; linear in the text's length.

    Not prose: fenced and inline code, comments, HTML tags, addresses of links, dates, and the
    numbers of headings, list items and footnotes. A number that continues a name (d8, v0.5,
    GPT-2) is none.
    """
    found: list[str] = []
    block: list[str] = []
    comment = listing = False
    for _, line in [*_outside_fences(text), (0, "")]:
        if comment or (line.lstrip().startswith("<!--") and "-->" not in line):
            # A comment that begins a line goes on over blank lines.
            comment, line = "-->" not in line, line.partition("-->")[2]
        if line.strip():
            item = ITEM.match(line)
            # As in Markdown: inside a paragraph only the number 1 begins a list.
            listing = listing or (item is not None and (not block or item[1] == "1"))
            number = HEADING.match(line) or (item if listing else None)
            block.append(line[number.end() :] if number else line)
            continue
        prose = _blank_out("\n".join(block))
        found += [match[0] for match in UNBOUND.finditer(prose)]
        block, listing = [], False
    return found


def _outside_fences(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a block of fenced code is one empty line."""
    fence = ""
    for number, line in enumerate(text.split("\n"), start=1):
        mark = FENCE.match(line)
        if not fence and mark:
            fence = mark[1]
            yield number, ""
        elif not fence:
            yield number, line
        elif mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
            fence = ""


def _blank_out(block: str) -> str:
    """A paragraph without its code, comments, addresses and dates, and without bound numbers."""
    runs = [(m.start(), m.end()) for m in SPECIAL.finditer(block) if m[0][0] == "`"]
    closing: dict[int, int] = {}
    after: dict[int, int] = {}
    for start, end in reversed(runs):
        if end - start in after:
            closing[start] = after[end - start]
        after[end - start] = end
    pieces: list[str] = []
    last_end = block.rfind("-->")
    position = 0
    while found := SPECIAL.search(block, position):
        start, end = found.span()
        kept = block[position:start]
        if found[0][0] == "`":
            # Without a partner it is a character like any other.
            end, filler = (closing[start], "` `") if start in closing else (end, found[0])
        elif start < last_end:
            end, filler = block.index("-->", start) + 3, " "
            written = WRITTEN.search(kept[-WINDOW:]) if MARK.match(block, start) else None
            if written:
                kept = kept[: len(kept) - len(written[0])]
        else:
            filler = " "
        pieces += [kept, filler]
        position = end
    return NO_PROSE.sub(" ", "".join(pieces) + block[position:])


def _line(line: str, number: int, evidence: Callable[[str], StudyEvidence]) -> Iterator[Mismatch]:
    marks = list(MARK.finditer(line))
    if len(marks) != sum(1 for _ in OPENING.finditer(line)):
        yield Mismatch(line=number, message="a binding that does not end with --> on its line")
    for mark in marks:
        written = _before(line, mark)
        if written is None:
            message = f"{mark[0]!r}: a binding without a number right before it"
            yield Mismatch(line=number, message=message)
            continue
        compared = True
        try:
            problem = _check(written, mark["reference"], evidence)
        except StudyError as error:
            problem, compared = str(error), not isinstance(error, RunsElsewhereError)
        if problem:
            message = f"{written[0] + mark[0]!r}: {problem}"
            yield Mismatch(line=number, message=message, compared=compared)


def _check(
    written: re.Match[str], reference: str, evidence: Callable[[str], StudyEvidence]
) -> str | None:
    values, statistic = _resolve(reference, evidence)
    if not values:
        return "no run that counts has this value"
    percent = bool(written["percent"])
    try:
        value = float(STATISTICS[statistic](values))
        problem = _compare(written["value"], value, statistic, percent=percent)
        if problem is None and written["std"] is not None:
            spread = statistics.stdev(values)
            problem = _compare(written["std"], spread, "std", percent=percent)
    except statistics.StatisticsError:
        return "a standard deviation needs at least two seeds"
    except OverflowError:
        return "the values are too large for a mean or standard deviation"
    return problem


def _resolve(reference: str, evidence: Callable[[str], StudyEvidence]) -> tuple[list[float], str]:
    """The values that a reference names, and the statistic asked of them."""
    words = reference.split()
    place, _, arm = words[0].partition("/") if words else ("", "", "")
    settings = dict(word.partition("=")[::2] for word in words[2:])
    if len(words) < 2 or not arm:
        raise StudyError("a binding is assay:STUDY/ARM METRIC [seed=…] [stat=…] [SETTING=…]")
    found = evidence(place)
    metric = words[1]
    seed, statistic = settings.pop("seed", None), settings.pop("stat", "mean")
    if statistic not in STATISTICS:
        raise StudyError(f"stat must be one of {', '.join(STATISTICS)}; got {statistic!r}")
    if arm not in found.arms:
        raise StudyError(f"study '{place}' has no arm '{arm}', only {', '.join(found.arms)}")
    if metric not in found.metrics:
        raise StudyError(unknown_key(metric, sorted(found.metrics), what="metric"))
    if seed is not None and seed not in found.seeds:
        raise StudyError(f"study '{place}' has no seed {seed}, only {', '.join(found.seeds)}")
    cell = {}
    for key, choices in found.grid.items():
        given = settings.pop(key, None)
        # A grid of one value need not be named, as in a criterion.
        chosen = [v for v in choices if _names(given, v) or (given is None and len(choices) == 1)]
        if len(chosen) != 1:
            raise StudyError(f"say {key}=…, one of {', '.join(map(str, choices))}")
        cell[key] = chosen[0]
    if settings:
        raise StudyError(f"unknown setting {', '.join(settings)}")
    values = found.values(metric, arm, cell)
    chosen_values = [v for s, v in values.items() if v is not None and seed in (None, s)]
    return [v for v in chosen_values if math.isfinite(v)], statistic


def _names(given: str | None, value: object) -> bool:
    """Whether a setting as written is a grid value: 1 names 1.0 as well."""
    if given is None or given == str(value):
        return given is not None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return float(given) == value
    except ValueError:
        return False


def _compare(written: str, value: float, what: str, *, percent: bool) -> str | None:
    """None if the written number is the value, rounded to the digits that are written."""
    scale = 100 if percent else 1
    shown_value = f"{what} is {value * scale:.6g}{'%' if percent else ''} now"
    try:
        with localcontext(prec=PRECISION):
            shown = Decimal(written.replace(",", "").replace("−", "-"))
            exponent = shown.as_tuple().exponent
            assert isinstance(exponent, int)
            unit = Decimal(1).scaleb(exponent)
            # A tie may be rounded either way: people use both rules. And 0.15 is a tie as it is written, but
            # less than one as it is stored, from which programs print 0.1.
            exact = (Decimal(repr(value)) * scale, Decimal(value * scale))
            rules = (ROUND_HALF_UP, ROUND_HALF_EVEN)
            rounded = {each.quantize(unit, rule) for each in exact for rule in rules}
            return None if shown in rounded else shown_value
    except InvalidOperation:
        return f"{written} cannot be compared: {shown_value}"
