"""`assay table`: mean ± std [n] per arm, with intervals and deltas."""

import sys
from dataclasses import asdict

from rich.table import Table as RichTable
from rich.text import Text

from assay.cli.common import Output, ledger, open_index, open_study, print_json
from assay.core.config import unknown_key
from assay.core.errors import ConfigError
from assay.core.evidence import Selection, select
from assay.core.render import NONE, delta, interval, mean_std, seed_values, table_markdown
from assay.core.replication import replications
from assay.core.settings import Settings
from assay.core.study import Study
from assay.core.table import (
    Cell,
    Table,
    build_table,
    default_metrics,
    known_metrics,
    to_csv,
    to_json,
)

COLOURS = {"agrees": "green", "differs": "red", "not comparable": "yellow"}


def table(
    study: str,
    *metrics: str,
    seeds: bool = False,
    json: bool = False,
    md: bool = False,
    csv: bool = False,
    reported: bool = False,
    analysis_versions: bool = False,
) -> None:
    """Mean ± std [n] per arm and cell, 95 % intervals, and deltas to the baseline.

    Args:
        study: Study id or file.
        metrics: Names of metrics; by default those with a direction.
        seeds: Show the value of every seed.
        json: Plain data, every seed with its run id.
        md: A Markdown table.
        csv: One line a seed.
        reported: Instead: the values that the study file copied from documents, beside ours.
        analysis_versions: Instead: what each version of the study's analyses gave, side by side.
    """
    settings = Settings.from_environment()
    loaded = open_study(study, settings)
    with open_index(settings, loaded.id) as index:
        selection = select(loaded, index, ledger(settings))
    if reported:
        _show_reported(loaded, selection, as_json=json)
        return
    if analysis_versions:
        from assay.cli.analyse import show_versions

        show_versions(loaded, selection, as_json=json)
        return
    known = known_metrics(loaded, selection)
    for name in metrics:
        if known and name not in known:
            raise ConfigError(
                f"study '{loaded.id}': {unknown_key(name, known, what='metric')} "
                "Metrics are named as split/quantity_unit."
            )
    built = build_table(loaded, selection, list(metrics) or default_metrics(loaded, selection))
    if json:
        print_json(to_json(built))
    elif csv:
        sys.stdout.write(to_csv(built))
    elif md:
        sys.stdout.write(table_markdown(built, seeds=seeds))
    else:
        _print(built, seeds=seeds)


def _show_reported(study: Study, selection: Selection, *, as_json: bool) -> None:
    found = list(replications(study, selection))
    if as_json:
        print_json([asdict(entry) | asdict(result) for entry, _, result in found])
        return
    console = Output()
    if not found:
        console.print(f"{study.id}: no [[reported]] values in its file.")
    for entry, rows, result in found:
        ours = mean_std(rows[0]) if len(rows) == 1 else NONE
        limits = (
            f" (expected {interval(result.low, result.high)})" if result.low is not None else ""
        )
        place = "".join(f", {key} = {value}" for key, value in entry.at.items())
        line = f", line {entry.line}" if entry.line is not None else ""
        console.print(
            Text.assemble(
                (result.answer, COLOURS[result.answer]),
                f" {entry.metric}, {entry.arm}{place}: reported {entry.value:.15g} ({entry.source}{line}), "
                f"ours {ours}{limits}. {result.why[:1].upper()}{result.why[1:]}.",
            )
        )


def _print(built: Table, *, seeds: bool) -> None:
    console = Output()
    if not built.rows:
        console.print("No metrics yet. `assay run` fills the table.")
        return
    shown = RichTable(box=None, pad_edge=False, header_style="bold")
    keys = list(built.rows[0].cell)
    heads = ["arm", *keys, "metric", "mean ± std [n]", "95 % interval", f"Δ to {built.baseline}"]
    for head in [*heads, *(["seeds"] if seeds else [])]:
        shown.add_column(head, overflow="fold")
    for row in built.rows:
        shown.add_row(*_cells(row, keys, seeds=seeds))
    console.print(shown)
    for note in built.notes:
        console.print(f"note: {note}")


def _cells(row: Cell, keys: list[str], *, seeds: bool) -> list[str]:
    shown = [row.arm, *(str(row.cell[k]) for k in keys), row.metric]
    shown += [mean_std(row), interval(row.low, row.high), delta(row)]
    return [*shown, seed_values(row)] if seeds else shown
