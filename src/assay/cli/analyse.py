"""`assay analyse`: compute versioned functions of stored artifacts."""

import sys

from rich.table import Table as RichTable

from assay.cli.common import Output, ledger, open_index, open_study, print_json
from assay.core.analysis import analyse as compute
from assay.core.config import unknown_key
from assay.core.errors import DataError, StudyError
from assay.core.evidence import Selection, select
from assay.core.render import mean_std
from assay.core.run import read_record
from assay.core.settings import Settings
from assay.core.study import Study
from assay.core.table import Cell, build_table

SHOWN_FAILURES = 2
"""Of one analysis: what a study's runs lack they mostly lack all."""


def analyse(study: str, name: str | None = None) -> None:
    """Compute the analyses of a study for every completed run that lacks their version.

    The values of older versions stay beside the new ones. The function is code of the project: it
    is imported and run. Exit code: 0 all runs have it, 1 a run could not be analysed.

    Args:
        study: Study id or file.
        name: One analysis; by default all of the file's [analyses.NAME].
    """
    settings = Settings.from_environment()
    loaded = open_study(study, settings)
    if not loaded.analyses or (name is not None and name not in loaded.analyses):
        what = unknown_key(name, list(loaded.analyses), what="analysis") if name else ""
        raise StudyError(f"{loaded.file}: {what or 'has no [analyses.NAME] table.'}")
    with open_index(settings, loaded.id) as index:
        selection = select(loaded, index, ledger(settings))
    console = Output()
    any_failed = False
    for key in [name] if name else list(loaded.analyses):
        analysis = loaded.analyses[key]
        computed = there = failed = 0
        for run in selection.counting.values():
            if run.status != "completed":
                continue
            folder = settings.runs_dir / run.path
            try:
                if compute(key, analysis, folder, read_record(folder), settings.root):
                    computed += 1
                else:
                    there += 1
            except DataError as error:
                failed += 1
                if failed <= SHOWN_FAILURES:
                    console.print(str(error), style="red")
        any_failed |= failed > 0
        if failed > SHOWN_FAILURES:
            console.print(
                f"… and {failed - SHOWN_FAILURES} more run(s) could not be analysed.", style="red"
            )
        console.print(
            f"{key}@{analysis.version}: {computed} run(s) analysed, {there} had it already."
        )
    sys.exit(1 if any_failed else 0)


def show_versions(study: Study, selection: Selection, *, as_json: bool) -> None:
    """Every metric of every analysis, its versions side by side; what claims read is marked."""
    versions: dict[str, set[int]] = {}
    for run in selection.counting.values():
        for metric, row in selection.values.get(run.id, {}).items():
            name, at, number = metric.rpartition("@")
            if at and row.source.startswith("analysis ") and number.isdecimal():
                versions.setdefault(name, set()).add(int(number))
    columns = sorted(set[int]().union(*versions.values()))
    pinned = {analysis.version for analysis in study.analyses.values()}
    names = [f"{metric}@{n}" for metric in sorted(versions) for n in sorted(versions[metric])]
    rows = {(r.arm, str(r.cell), r.metric): r for r in build_table(study, selection, names).rows}
    places = list(dict.fromkeys((arm, cell) for arm, cell, _ in rows))
    if as_json:
        print_json([_plain(row) for row in rows.values()])
        return
    console = Output()
    if not versions:
        console.print(f"{study.id}: no analysis was computed. `assay analyse {study.id}` does it.")
        return
    heads = [f"version {n}" + (" (claims read it)" if n in pinned else "") for n in columns]
    table = RichTable(
        "arm", "cell", "metric", *heads, box=None, pad_edge=False, header_style="bold"
    )
    for metric in sorted(versions):
        for arm, cell in places:
            found = [rows.get((arm, cell, f"{metric}@{n}")) for n in columns]
            shown = [mean_std(row) if row is not None else "" for row in found]
            values = next(row.cell for row in found if row is not None)
            where = ", ".join(f"{k} = {v}" for k, v in values.items()) or "all"
            table.add_row(arm, where, metric, *shown)
    console.print(table)


def _plain(row: Cell) -> dict[str, object]:
    metric, _, version = row.metric.rpartition("@")
    about = {"arm": row.arm, "cell": row.cell, "metric": metric, "version": int(version)}
    return about | {"mean": row.mean, "std": row.std, "seeds": row.seeds}
