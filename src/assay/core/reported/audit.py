"""The arithmetic of a log, without any run."""

from collections.abc import Callable, Iterator

from assay.core.reported.checks import changes, claims, deltas, means, repeats, shares, totals
from assay.core.reported.checks.common import Found
from assay.core.reported.document import Block, Document
from assay.core.reported.finding import Finding
from assay.core.reported.tables import Table

TEXT: tuple[Callable[[Block], Iterator[Found]], ...] = (
    shares.shares,
    changes.changes,
    means.told_means,
    totals.equations,
)
TABLES: tuple[Callable[[Table], Iterator[Found]], ...] = (
    shares.share_columns,
    deltas.row_deltas,
    means.mean_rows,
    means.mean_columns,
    repeats.values_told_twice,
    repeats.links,
    claims.marked_best,
    claims.best_and_last,
    claims.unequal_budgets,
)
WHOLE: tuple[Callable[[Document], Iterator[Found]], ...] = (
    deltas.baseline_deltas,
    means.cross_validation,
    totals.multiples,
    repeats.rows_told_twice,
    claims.gains,
    claims.best_of_section,
)


def audit(document: Document) -> list[Finding]:
    """What does not fit in a log, in the order of its lines.

    A place is named once: a number that two checks find is reported by the first of them.
    """
    found: dict[tuple[int, int], Found] = {}
    for each in _all(document):
        found.setdefault((each.line, each.column), each)
    return [
        Finding(
            rule=each.rule,
            severity=each.severity,
            file=document.name,
            line=each.line,
            column=each.column,
            printed=each.printed[:160],
            recomputed=each.recomputed[:160],
            says=each.says[:500],
            way_out=each.way_out,
        )
        for _, each in sorted(found.items())
    ]


def _all(document: Document) -> Iterator[Found]:
    for block in document.blocks:
        pieces = block.cells() if block.table is not None else [block] if block.prose else []
        for piece in pieces:
            for check in TEXT:
                yield from check(piece)
        if block.table is not None:
            for on_table in TABLES:
                yield from on_table(block.table)
    for blocks in document.sections:
        yield from changes.against_baseline(blocks)
    for on_document in WHOLE:
        yield from on_document(document)
