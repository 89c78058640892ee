"""`assay import-runs`: what another tracker reports, listed; never evidence."""

import csv as csv_files
from pathlib import Path
from typing import Any

from rich.table import Table

from assay.cli.common import Output, print_json
from assay.core.errors import ConfigError
from assay.core.export.whole import whole
from assay.core.files import explicit
from assay.core.foreign import ReportedRun, ReportedRuns, read_reported
from assay.core.render import number

REPORTED = "reported, not evidence"
HEAD = ("standing", "kind", "source", "run", "status", "metric", "step", "time", "value")


def import_runs(path: Path, *, json: bool = False, csv: Path | None = None) -> None:
    """Read a folder of TensorBoard event files, or an `mlruns` folder of MLflow.

    What another tool recorded is reported, not evidence: no claim can rest on it, and nothing is
    added to `runs/`. Links are not followed; damaged and cut-off rows are counted.

    Args:
        path: The folder.
        json: Plain data: every value with its step and time.
        csv: Write a table to this new file, one line a value.
    """
    if json and csv is not None:
        raise ConfigError("Give --json or --csv OUT, not both: each is all of the data.")
    found = read_reported(path)
    if json:
        print_json(to_json(found))
        return
    if csv is not None:
        values = write_csv(found, csv)
        Output().print(f"{len(found.runs)} run(s), {values} value(s) written to {csv}; {REPORTED}.")
    else:
        _print(found)
    _print_problems(found)


def to_json(found: ReportedRuns) -> dict[str, Any]:
    """Everything that was read, as plain data."""
    return {
        "standing": REPORTED,
        "kind": found.kind,
        "problems": found.problems,
        "runs": [
            {
                "name": run.name,
                "source": run.source,
                "status": run.status,
                "params": run.params,
                "tags": run.tags,
                "torn_lines": run.torn_lines,
                "bad_lines": run.bad_lines,
                "problems": run.problems,
                "metrics": {
                    name: {
                        "steps": series.steps.tolist(),
                        "values": explicit(series.values.tolist()),
                        "times": series.times.tolist(),
                    }
                    for name, series in run.metrics.items()
                },
            }
            for run in found.runs
        ],
    }


def write_csv(found: ReportedRuns, out: Path) -> int:
    """Write one line a value; returns how many.

    Raises:
        StoreError: `out` exists or cannot be written.
    """
    params = sorted({name for run in found.runs for name in run.params})
    lines = 0
    with whole(out) as temporary, temporary.open("x", newline="", encoding="utf-8") as file:
        rows = csv_files.writer(file)
        rows.writerow([*HEAD, *(f"param.{name}" for name in params)])
        for run in found.runs:
            of_run = [REPORTED, found.kind, run.source, run.name, run.status]
            given = [run.params.get(name, "") for name in params]
            points = _points(run)
            lines += len(points)
            rows.writerows([*of_run, *point, *given] for point in points)
            if not points:  # It must not vanish.
                rows.writerow([*of_run, *("",) * 4, *given])
    return lines


def _points(run: ReportedRun) -> list[tuple[str, int, float, float]]:
    return [
        (name, step, time, value)
        for name, series in run.metrics.items()
        for step, value, time in zip(*(column.tolist() for column in series), strict=True)
    ]


def _print(found: ReportedRuns) -> None:
    console = Output()
    console.print(f"{found.kind}: {len(found.runs)} run(s), {REPORTED}.", style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("run", "source", "status", "metric", "points", "last step", "last value"):
        table.add_column(head, overflow="fold")
    for run in found.runs:
        place = [_shown(run.name), _shown(run.source), _shown(run.status)]
        for name, series in run.metrics.items():
            last = int(series.values.size - 1 - series.steps[::-1].argmax())
            table.add_row(*place, _shown(name), str(series.steps.size), str(series.steps[last]),
                          number(float(series.values[last])))  # fmt: skip
            place = ["", "", ""]
        if not run.metrics:
            table.add_row(*place, "–", "0", "", "")
    console.print(table)


def _print_problems(found: ReportedRuns) -> None:
    console = Output()
    for run in found.runs:
        if run.torn_lines:
            console.print(f"{_shown(run.source)}: {run.torn_lines} row(s) cut off at the end")
        for problem in run.problems:
            console.print(f"{_shown(run.source)}: {_shown(problem)}")
    for problem in found.problems:
        console.print(f"not read: {_shown(problem)}")


def _shown(text: str) -> str:
    """A text of somebody else's, without what could steer the terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)
