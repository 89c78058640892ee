"""`assay ls`, `show`, `diff`, `index`: looking at runs."""

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.cli.common import (
    Output,
    ledger,
    open_index,
    open_study,
    print_json,
    study_paths,
    unknown_study,
)
from assay.core.config import flatten
from assay.core.errors import StudyError
from assay.core.index import Index
from assay.core.ledger import invalidations
from assay.core.read import IndexedRun
from assay.core.render import number
from assay.core.settings import Settings


def ls(study: str | None = None, *, json: bool = False) -> None:
    """List studies; or, with a study, its runs.

    Args:
        study: Study id or file; "scratch" for ad-hoc runs.
        json: Plain data.
    """
    settings = Settings.from_environment()
    console = Output()
    if study is not None and study.endswith(".toml"):
        study = open_study(study, settings).id
    with open_index(settings, study) as index:
        if study is None:
            _studies(settings, index, console, json=json)
            return
        runs = index.runs(study)
        broken = index.broken(study)
        known = {name for name, _ in index.studies()} | set(study_paths(settings))
    if not runs and not broken and study not in known:
        raise StudyError(unknown_study(study, sorted(known), settings))
    struck = invalidations(ledger(settings))
    if json:
        print_json([msgspec.to_builtins(run) | {"invalid": run.id in struck} for run in runs])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for head in ("arm", "cell", "seed", "phase", "status", "attempts", "seconds", "code"):
        table.add_column(head)
    for run in runs:
        status = f"{run.status}, invalidated" if run.id in struck else run.status
        seconds = NONE if run.duration_s is None else f"{run.duration_s:,.1f}"
        table.add_row(run.id, run.arm, run.cell_label, run.seed_label, run.phase, status,
                      str(run.attempts), seconds, run.code)  # fmt: skip
    console.print(table)
    for path, reason in broken:
        console.print(f"not readable: {path}: {reason}", style="red")


NONE = "–"


def _studies(settings: Settings, index: Index, console: Console, *, json: bool) -> None:
    counts = dict(index.studies())
    files = study_paths(settings)
    names = sorted({*counts, *files})
    if json:
        print_json([{"study": n, "runs": counts.get(n, 0), "file": n in files} for n in names])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("study", "runs", "file"):
        table.add_column(head)
    for name in names:
        file = files.get(name)
        table.add_row(
            name, str(counts.get(name, 0)), str(file.relative_to(settings.root)) if file else NONE
        )
    console.print(table)


def show(run: str, *, json: bool = False) -> None:
    """Show one run: state, seeds, configuration, metrics, provenance, events, error.

    Args:
        run: Its id, or the first letters of it.
        json: Plain data.
    """
    settings = Settings.from_environment()
    with open_index(settings) as index:
        found = index.find(run)
        values = index.run_values(found.id)
        facts = index.facts(found.id)
    event = invalidations(ledger(settings)).get(found.id)
    if json:
        metrics = msgspec.to_builtins(values)
        print_json(msgspec.to_builtins(found) | {"metrics": metrics, "provenance": facts})
        return
    console = Output()
    place = f"  {found.study} / {found.arm} / {found.cell_label}"
    console.print(Text.assemble((found.id, "bold"), place))
    if event is not None:
        console.print(f"invalidated {event.at} by {event.by}: {event.body['because']}", style="red")
    _print_state(found, console)
    if found.error:
        console.print(found.error, style="red")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("metric", "value", "from", "points", "smallest", "largest", "not finite"):
        table.add_column(head)
    for row in values:
        value = "nan" if row.value is None else number(row.value)
        table.add_row(row.name, value, row.source, str(row.num_points), number(row.low),
                      number(row.high), str(row.non_finite))  # fmt: skip
    console.print(table)
    console.print("provenance", style="bold")
    for key, fact in sorted(facts.items()):
        if not key.startswith(("installed.", "config.", "seed.", "budget.", "spent.")):
            console.print(f"  {key} = {fact}")
    for message in [*found.events, *found.problems]:
        console.print(f"event: {message}")


def _print_state(run: IndexedRun, console: Console) -> None:
    seconds = "" if run.duration_s is None else f", {run.duration_s:,.1f} s"
    console.print(
        f"{run.status}, attempt {run.attempts}{seconds}, phase {run.phase}, generation "
        f"{run.generation}, code {run.code or 'not under version control'}"
    )
    console.print(f"folder runs/{run.path}")
    if run.cmd:
        console.print(f"command {' '.join(run.cmd)}")
    for title, values in (
        ("seeds", run.seeds),
        ("config", flatten(run.config)),
        ("spent", run.spent),
    ):
        if values:
            listed = ", ".join(f"{k} = {v}" for k, v in values.items())
            console.print(f"{title}: {listed}")
    for name, sha256 in run.artifacts.items():
        console.print(f"artifact {name}: sha256 {sha256}")
    for name, inputs in run.analyses.items():
        console.print(f"analysis {name} of {', '.join(inputs) or 'no artifact'}")


def diff(first: str, second: str, *, json: bool = False) -> None:
    """What differs between two runs: configuration, environment, code, packages, metrics.

    Args:
        first: Id of a run.
        second: Id of another.
        json: Plain data.
    """
    settings = Settings.from_environment()
    with open_index(settings) as index:
        runs = [index.find(name) for name in (first, second)]
        sides = [_side(index, run) for run in runs]
    keys = sorted({key for side in sides for key in side})
    different = [key for key in keys if sides[0].get(key, NONE) != sides[1].get(key, NONE)]
    if json:
        print_json({key: [side.get(key) for side in sides] for key in different})
        return
    console = Output()
    if not different:
        console.print("The runs do not differ.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("", runs[0].id, runs[1].id):
        table.add_column(head, overflow="fold")
    for key in different:
        table.add_row(key, *(_text(side.get(key, NONE)) for side in sides))
    console.print(table)


def _side(index: Index, run: IndexedRun) -> dict[str, object]:
    metrics = {f"metric {row.name}": row.value for row in index.run_values(run.id)}
    return {"arm": run.arm, "cell": run.cell_label, **index.facts(run.id), **metrics}


def _text(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def index(*, rebuild: bool = False) -> None:
    """Bring the index up to date. It is a cache: every command does so for what it reads.

    Args:
        rebuild: Forget it and read every run directory again.
    """
    settings = Settings.from_environment()
    with Index(settings.index_path, settings.runs_dir) as opened:
        done = opened.rebuild() if rebuild else opened.refresh()
        broken = opened.broken()
    console = Output()
    console.print(
        f"{done.read} run(s) read, {done.unchanged} unchanged, {done.removed} gone; "
        f"{len(broken)} not readable."
    )
    for path, reason in broken:
        console.print(f"not readable: {path}: {reason}")
