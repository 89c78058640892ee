"""`assay table`: mean ± std [n] per arm, with intervals and deltas."""

import math
import sys
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table as RichTable
from rich.text import Text

from assay.cli.common import Output, ledger, open_index, open_study, print_json
from assay.core.baselines import find_baseline, label_of, set_baseline, struck_runs, values_of
from assay.core.config import unknown_key
from assay.core.errors import ConfigError
from assay.core.evidence import Selection, select
from assay.core.ledger import Event
from assay.core.plan import cell_label
from assay.core.render import (
    NONE,
    delta,
    delta_text,
    interval,
    mean_std,
    seed_values,
    table_markdown,
)
from assay.core.replication import replications
from assay.core.settings import Settings
from assay.core.study import Study
from assay.core.table import (
    Cell,
    Table,
    build_table,
    default_metrics,
    difference,
    known_metrics,
    to_csv,
    to_json,
)

COLOURS = {"agrees": "green", "differs": "red", "not comparable": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a table is written."""

    seeds: bool = False
    """Show the value of every seed."""
    json: bool = False
    """Plain data, every seed with its run id."""
    md: bool = False
    """A Markdown table."""
    csv: bool = False
    """One line a seed."""
    percent: bool = False
    """Deltas in per cent of the baseline's mean; by default in the metric's unit."""


PLAIN = Form()


def table(
    study: str,
    *metrics: str,
    form: Annotated[Form, Parameter(name="*")] = PLAIN,
    against: str | None = None,
    reported: bool = False,
    analysis_versions: bool = False,
) -> None:
    """Mean ± std [n] per arm and cell, 95 % intervals, and deltas to the baseline.

    Args:
        study: Study id or file.
        metrics: Names of metrics; by default those with a direction.
        form: How the table is written.
        against: Add deltas to a named baseline, NAME or NAME@VERSION (`assay baseline`).
        reported: Instead: the values that the study file copied from documents, beside ours.
        analysis_versions: Instead: what each version of the study's analyses gave, side by side.
    """
    settings = Settings.from_environment()
    loaded = open_study(study, settings)
    with open_index(settings, loaded.id) as index:
        selection = select(loaded, index, ledger(settings))
    if reported:
        _show_reported(loaded, selection, as_json=form.json)
        return
    if analysis_versions:
        from assay.cli.analyse import show_versions

        show_versions(loaded, selection, as_json=form.json)
        return
    known = known_metrics(loaded, selection)
    for name in metrics:
        if known and name not in known:
            raise ConfigError(
                f"study '{loaded.id}': {unknown_key(name, known, what='metric')} "
                "Metrics are named as split/quantity_unit."
            )
    built = build_table(loaded, selection, list(metrics) or default_metrics(loaded, selection))
    if form.json:
        print_json(to_json(built))
    elif form.csv:
        sys.stdout.write(to_csv(built))
    elif form.md:
        sys.stdout.write(table_markdown(built, seeds=form.seeds))
    else:
        events = ledger(settings)
        found = find_baseline(against, events) if against is not None else None
        _print(built, form, found)
        if found is not None:
            for run in struck_runs(found, events):
                Output().print(f"note: {label_of(found)} rests on {run}, invalidated since.")


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


def _print(built: Table, form: Form, against: Event | None) -> None:
    console = Output()
    if not built.rows:
        console.print("No metrics yet. `assay run` fills the table.")
        return
    shown = RichTable(box=None, pad_edge=False, header_style="bold")
    keys = list(built.rows[0].cell)
    heads = ["arm", *keys, "metric", "mean ± std [n]", "95 % interval"]
    unit = ", %" if form.percent else ""
    heads.append(f"Δ to {built.baseline}{unit}")
    if against is not None:
        heads.append(f"Δ to {label_of(against)}{unit}")
    for head in [*heads, *(["seeds"] if form.seeds else [])]:
        shown.add_column(head, overflow="fold")
    for row in built.rows:
        cells = _cells(row, keys, percent=form.percent)
        if against is not None:
            finite = {s: v for s, v in row.seeds.items() if math.isfinite(v)}
            found = difference(finite, values_of(against, row.metric, cell_label(row.cell)))
            cells.append("" if found is None else delta_text(found, percent=form.percent))
        shown.add_row(*cells, *([seed_values(row)] if form.seeds else []))
    console.print(shown)
    for note in built.notes:
        console.print(f"note: {note}")


def _cells(row: Cell, keys: list[str], *, percent: bool) -> list[str]:
    shown = [row.arm, *(str(row.cell[k]) for k in keys), row.metric]
    return [*shown, mean_std(row), interval(row.low, row.high), delta(row, percent=percent)]


def baseline(name: str, study: str, arm: str, *, because: str) -> None:
    """Set a named baseline: an arm as it stands now becomes the next version of it.

    `assay table STUDY --against NAME` shows deltas to it; older versions stay, as NAME@VERSION.

    Args:
        name: The baseline.
        study: Study id or file.
        arm: The arm whose values it is.
        because: The reason; it appears in the log.
    """
    settings = Settings.from_environment()
    loaded, events = open_study(study, settings), ledger(settings)
    with open_index(settings, loaded.id) as index:
        selection = select(loaded, index, events)
    event = set_baseline(name, loaded, arm, selection, settings, events, because)
    Output().print(
        f"{label_of(event)} is arm {arm} of {loaded.id}, {len(event.body['runs_used'])} run(s). "
        "Commit ledger/ to share it."
    )
