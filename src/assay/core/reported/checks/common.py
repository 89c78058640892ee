"""What the checks share."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from assay.core.reported.document import Block
from assay.core.reported.quantities import Quantity, overlap

LOWER = ("loss", "error", "err", "bpb", "bpc", "perplexity", "ppl", "mae", "mse", "rmse", "wer", "cer", "nll", "fid", "regret", "latency", "eer")  # fmt: skip
HIGHER = ("acc", "accuracy", "f1", "auc", "score", "map", "precision", "recall", "bleu", "r2", "reward", "em", "mrr", "ndcg", "iou", "dice", "lb", "throughput", "psnr")  # fmt: skip


class Found(NamedTuple):
    """A finding before the file's name is known."""

    rule: str
    line: int
    column: int
    printed: str
    recomputed: str
    says: str
    way_out: str
    severity: Literal["error", "note"] = "error"


Findings = Iterator[Found]


def whole(block: Block, found: "re.Match[str]") -> str:
    """What stands there, with the bracket that closes it."""
    closing = block.clean[found.end() : found.end() + 1]
    return " ".join(found[0].split()) + (closing if closing in (")", "]") else "")


def agree(quantity: Quantity, low: float, high: float) -> bool:
    """Whether a value between two bounds can be printed as a quantity."""
    return overlap(quantity.low, quantity.high, min(low, high), max(low, high))


def ratio(top: Quantity, bottom: Quantity) -> tuple[float, float]:
    """Bounds of the quotient of two printed numbers; a divisor that may be 0 bounds nothing."""
    if bottom.low <= 0 <= bottom.high:
        return -float("inf"), float("inf")
    ends = [a / b for a in (top.low, top.high) for b in (bottom.low, bottom.high)]
    return min(ends), max(ends)


def direction(name: str) -> int:
    """Whether more (1) or less (-1) of a metric is better, as far as its name tells; else 0."""
    words = "".join(char if char.isalnum() else " " for char in name.lower()).split()
    lower = any(word.rstrip("s") in LOWER or word in LOWER for word in words)
    higher = any(word in HIGHER for word in words)
    return 0 if lower == higher else (-1 if lower else 1)
