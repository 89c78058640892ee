"""What is wrong with a log's arithmetic."""

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One number, or pair of numbers, that does not fit.

    Attributes:
        rule: Name of the check.
        severity: An "error" cannot be: no values that are rounded to what is printed give it. A
            "note" may have a reason that the log does not tell.
        file: As the reader knows it.
        line: Counted from 1.
        column: Counted from 1; tells places apart in a file of one line.
        printed: What stands there.
        recomputed: What the log's own numbers give.
        says: The rule and how it was broken.
        way_out: What would mend it.
    """

    rule: str
    severity: Literal["error", "note"]
    file: str
    line: int
    column: int
    printed: str
    recomputed: str
    says: str
    way_out: str
