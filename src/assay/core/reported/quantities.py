"""Numbers as they are printed, each with the interval of values that are rounded to it."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from assay.core.reported.clean import clean

NUMBER = (
    r"(?>[+\-−]?(?>\d{1,3}(?:,\d{3}){1,6}(?!\d)(?!,\d)|\d{1,18}|(?=\.\d))"
    r"(?:\.\d{1,20})?(?:[eE][+\-]?\d{1,2}(?![\w.]))?)"
)
"""A number. Atomic, so that `1,234,567` is read in one way only and a list of them is linear."""
START = r"(?<![\w.,])(?<![\w)\]]-)"
"""Before a number: no letter, digit, point, and no hyphen that belongs to a word."""
END = r"(?!\w)(?!\.\d)(?!,\d{3}(?!\d))"
SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}
UNIT = r"(?:\s?(?P<unit>%|pp\b|pts?\b|points?\b|[xX×]\b|×|[kKMBG](?!\w)|[a-zA-Zµ]{1,8}(?:/[a-zA-Z]{1,8})?(?!\w)))?"
SPREAD = rf"(?:\s{{0,2}}(?:±|\+/-|\+-)\s{{0,2}}(?P<spread>{NUMBER})\s?%?)?"
CELL = re.compile(
    rf"(?P<about>[~≈<>≤≥]{{1,2}}\s?)?(?P<value>{NUMBER}){SPREAD}{UNIT}{SPREAD.replace('spread', 'late')}"
    r"\s{0,3}(?:[(\[](?P<remark>[^()\[\]]{0,120})[)\]])?\s{0,3}(?P<mark>[✓✔✅✗❌←★☆⭐🏆🥇†‡↑↓*!]{0,4}\s?(?:best)?)",
    re.IGNORECASE,
)
FIRST = re.compile(rf"{START}(?P<value>{NUMBER}){SPREAD}\s?(?P<unit>%)?(?!\w)")
NOTED = re.compile(r"[^*][*†‡]{1,2}\s*$|\^\w\s*$")
FUZZ = 1e-9


@dataclass(frozen=True, slots=True)
class Quantity:
    """A printed number.

    Attributes:
        value: The number.
        half: Half a unit of its last digit.
        text: As printed.
        unit: What follows it, `%` for instance.
        about: Whether it is not meant exactly (`~2`).
        spread: What follows a `±`.
        remark: What follows in brackets.
        best: Whether it is marked as the best one.
        noted: Whether a mark behind it points to a footnote.
    """

    value: float
    half: float
    text: str
    unit: str = ""
    about: bool = False
    spread: float | None = None
    remark: str = ""
    best: bool = False
    noted: bool = False

    @property
    def low(self) -> float:
        """The least value that is printed so."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """The greatest value that is printed so."""
        return self.value + self.half

    @property
    def whole(self) -> bool:
        """Whether it is printed as an integer."""
        return self.half == 0.5

    @property
    def signed(self) -> bool:
        """Whether its sign is printed."""
        return self.text[:1] in "+-−"

    @property
    def digits(self) -> int:
        """Digits that tell it from another number: leading zeros do not."""
        mantissa = self.text.lower().partition("e")[0]
        return len("".join(char for char in mantissa if char.isdigit()).lstrip("0"))

    def agrees(self, other: "Quantity") -> bool:
        """Whether one value can be printed as both."""
        return overlap(self.low, self.high, other.low, other.high)


def quantity(text: str, unit: str = "", *, about: bool = False) -> Quantity | None:
    """The quantity that a text that matches NUMBER is; None if it is no finite number.

    `k`, `M` and `B` after it are part of the number.
    """
    body = text.strip().replace("−", "-").replace(",", "")
    mantissa, _, exponent = body.lower().partition("e")
    try:
        value, power = float(body), int(exponent or 0)
    except ValueError:
        return None
    scale = SCALES.get(unit, 1.0)
    half = 0.5 * 10.0 ** (power - len(mantissa.partition(".")[2])) * scale
    if not math.isfinite(value * scale):
        return None
    return Quantity(value * scale, half, text.strip() + (unit if scale > 1 else ""), unit, about)


def cell_quantity(cell: str) -> Quantity | None:
    """The number that a cell of a table consists of; None if the cell says something else."""
    text = clean(cell[:300]).strip()
    found = CELL.fullmatch(text)
    value = found and quantity(found["value"], _unit(found), about=bool(found["about"]))
    if not found or value is None:
        return None
    spread = quantity(found["spread"] or found["late"] or "")
    return replace(
        value,
        spread=None if spread is None else spread.value,
        remark=found["remark"] or "",
        noted=bool(NOTED.search(cell.replace("**", ""))),
        best="best" in (found["remark"] or "").lower()
        or bool(set(found["mark"]) & set("🏆🥇★⭐b")),
    )


def _unit(found: "re.Match[str]") -> str:
    """The unit of a number; in `59.2±0.4%` it stands behind the spread."""
    number = re.split(r"[(\[]", found[0], maxsplit=1)[0]
    return found["unit"] or ("%" if "%" in number else "")


def named_quantities(text: str) -> Iterator[tuple[str, Quantity, int]]:
    """Name, quantity and offset of every `name: value`, `name=value` or `name value` of a text."""
    text = clean(text)
    end = 0
    for found in FIRST.finditer(text):
        name = _name(text[max(end, found.start() - 80) : found.start()])
        end = found.end()
        value = quantity(found["value"], _unit(found))
        if value is not None:
            spread = quantity(found["spread"] or "")
            value = replace(value, spread=None if spread is None else spread.value)
            yield name, value, found.start()


def _name(before: str) -> str:
    """The words before a number that name it."""
    piece = re.split(r"[;,()|→]|\s-\s|\.\s", before.rstrip(" :=≈~\t"))[-1]
    return " ".join(re.sub(r"[^\w\s./_%+-]", " ", piece).split()[-5:]).lstrip("-+ ")


def overlap(low: float, high: float, other_low: float, other_high: float) -> bool:
    """Whether two intervals meet, but for the error of the arithmetic itself."""
    fuzz = FUZZ * max(1e-12, abs(low), abs(high), abs(other_low), abs(other_high))
    return low <= other_high + fuzz and other_low <= high + fuzz


def shown(value: float, like: Quantity, *, more: int = 0) -> str:
    """A value with as many decimals as the number that it is compared with."""
    decimals = max(0, round(-math.log10(2 * like.half))) + more if like.half > 0 else 6
    # Halves are rounded away from zero, as a reader would.
    value *= 1 + 1e-12
    return f"{value:.{min(decimals, 12)}f}" if abs(value) < 1e15 else f"{value:.6g}"
