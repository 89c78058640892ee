"""`assay log`: write EXPERIMENTS.md from the runs, or check that it still says what they say."""

import sys
from functools import partial
from pathlib import Path

from assay.cli.common import Output, ledger, load_studies, open_index
from assay.core.errors import StoreError
from assay.core.figures import draw_figures
from assay.core.files import write_atomic
from assay.core.log import check_files, check_log, evidence_of, name_figures, write_log
from assay.core.settings import Settings

NAME = "EXPERIMENTS.md"


def log(*files: Path, check: bool = False) -> None:
    """Write EXPERIMENTS.md and its figures; or, with --check, compare them with the runs.

    Exit code of --check: 0 all numbers hold, 1 a generated or bound number does not; the line is
    named.

    Args:
        files: Further Markdown files whose bound numbers are checked, besides notes/.
        check: Change nothing; compare.
    """
    settings = Settings.from_environment()
    path = settings.root / NAME
    try:
        old = path.read_text("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} must be readable UTF-8 text: {error}. Restore it, or move it away: it is "
            "written from the runs."
        ) from error
    studies = load_studies(settings)
    events = ledger(settings)
    console = Output()
    with open_index(settings) as index:
        draw = name_figures if check else draw_figures
        made = write_log(studies, index, events, settings, old, draw=draw)
        known = {s.id: partial(evidence_of, s, index, events) for s in studies}
        notes = sorted(settings.notes_dir.glob("*.md"))
        found = check_files([*notes, *files], known)
    problems = [f"{file.name}:{m.line}: {m.message}" for file, m in found]
    if check:
        problems = [f"{NAME}:{m.line}: {m.message}" for m in check_log(old, made.text)] + problems
        for problem in problems:
            console.print(problem)
        count = f"{len(problems)} problem(s)" if problems else "every number holds"
        console.print(f"{NAME}: {count}; {len(notes) + len(files)} file(s) with prose checked.")
        sys.exit(1 if problems else 0)
    write_atomic(path, made.text.encode())
    console.print(f"wrote {NAME}")
    for figure in made.figures:
        console.print(f"wrote {figure.relative_to(settings.root)}")
    for name in made.kept:
        console.print(f"kept the section of {name}: its runs are not on this machine")
    for problem in problems:
        console.print(f"does not hold: {problem}", style="red")
