"""`assay log`: write EXPERIMENTS.md from the runs, or check that it still says what they say."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from assay.cli.common import Output, ledger, load_studies, open_index
from assay.core.errors import StoreError
from assay.core.figures import draw_figures
from assay.core.files import write_atomic
from assay.core.log import (
    Log,
    check_figures,
    check_files,
    check_log,
    check_runs,
    evidence_of,
    fix_files,
    write_log,
)
from assay.core.settings import Settings

NAME = "EXPERIMENTS.md"


def log(*files: Path, check: bool = False, fix: bool = False) -> None:
    """Write EXPERIMENTS.md and its figures; or, with --check, compare them with the runs.

    Exit code of --check: 0 nothing is wrong, 1 a generated or bound number does not hold, or a
    figure or a completed run was changed; of --fix: 1 a bound number is left that does not hold.
    Each is named. Sections whose runs are not on this
    machine cannot be compared: they are named and change no exit code.

    Args:
        files: Further Markdown files whose bound numbers are checked, besides notes/.
        check: Change nothing; compare.
        fix: First rewrite, in notes/ and the files, every bound number that no longer holds.
    """
    settings = Settings.from_environment()
    if check and fix:
        raise StoreError("--check changes nothing and --fix does: give one of them.")
    path = settings.root / NAME
    old = _old(path)
    studies = load_studies(settings)
    events = ledger(settings)
    console = Output()
    with open_index(settings) as index:
        if check:
            index.verify()
        known = {s.id: partial(evidence_of, s, index, events) for s in studies}
        notes = sorted(settings.notes_dir.glob("*.md"))
        for file, rewritten in fix_files([*notes, *files] if fix else [], known):
            console.print(f"{_name(file, settings)}: {rewritten}")
        draw = None if check else draw_figures
        made = write_log(studies, index, events, settings, old, draw=draw)
        nameless = [
            (name, runs)
            for name, runs in index.studies()
            if name not in known and name not in made.gone
        ]
        prose = check_files([*notes, *files], known, made.kept)
        changed = check_runs(old, index) if check else []
    lines = [(_name(f, settings), m) for f, m in prose.mismatches]
    problems = [f"{name}:{m.line}: {m.message}" for name, m in lines if m.compared]
    not_compared = [f"{name}:{m.line}: {m.message}" for name, m in lines if not m.compared]
    if check:
        unbound = [f"{_name(f, settings)}: {n} unbound number(s)" for f, n in prose.unbound.items()]
        generated = [*check_log(old, made.text), *check_figures(old, settings.root)]
        problems = [f"{NAME}:{m.line}: {m.message}" for m in generated] + changed + problems
        for line in [*problems, *not_compared, *unbound]:
            console.print(line)
        for line in _conclusion(made, len(problems), len(notes) + len(files), len(not_compared)):
            console.print(line)
        sys.exit(1 if problems else 0)
    write_atomic(path, made.text.encode())
    for line in _written(made, nameless, len(not_compared), sum(prose.unbound.values()), settings):
        console.print(line)
    for problem in problems:
        console.print(f"does not hold: {problem}", style="red")
    sys.exit(int(fix and bool(problems)))


def _written(
    made: Log,
    nameless: Sequence[tuple[str, int]],
    not_compared: int,
    unbound: int,
    settings: Settings,
) -> Iterator[str]:
    """What was written, kept and left out; what --check lists is counted."""
    yield f"wrote {NAME}"
    for figure in made.figures:
        yield f"wrote {figure.relative_to(settings.root)}"
    if made.kept:
        yield f"kept {len(made.kept)} section(s): their runs are not on this machine"
    for name in made.gone:
        yield f"kept the section of {name}: its study file is gone"
    for name, runs in nameless:
        yield f"left out {runs} run(s) of {name}: no file under {settings.root / 'studies'} has this id"
    if not_compared or unbound:
        yield (
            f"of the numbers in notes {not_compared} are bound to runs that are not on this machine, and "
            f"{unbound} to none; `assay log --check` lists them"
        )


def _old(path: Path) -> str:
    """The log as it is; empty if there is none."""
    try:
        return path.read_text("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} must be readable UTF-8 text: {error}. Restore it, or move it away: it is "
            "written from the runs."
        ) from error


def _name(file: Path, settings: Settings) -> str:
    """A file as a reader knows it: relative to the project."""
    path = file.resolve()
    return (
        path.relative_to(settings.root).as_posix()
        if path.is_relative_to(settings.root)
        else str(file)
    )


def _conclusion(made: Log, problems: int, prose: int, not_compared: int) -> Iterator[str]:
    """What was compared and what was not; "every number" only if every one was."""
    for names, why in (
        (made.kept, "their runs are not on this machine"),
        (made.gone, "their study files are gone"),
    ):
        if names:
            yield f"{len(names)} section(s) not compared: {why} ({', '.join(names)})"
    whole = not (made.kept or made.gone or not_compared)
    if problems:
        verdict = f"{problems} problem(s)"
    elif whole:
        verdict = "every number that is computed from runs or bound to them holds"
    elif made.compared:
        verdict = f"no problem in the {len(made.compared)} section(s) that could be compared"
    else:
        verdict = "no number was compared with runs"
    yield f"{NAME}: {verdict}; {prose} file(s) with prose checked."
