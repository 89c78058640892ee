"""Finding engines: installed ones by entry point, a project's own by `module:NAME`."""

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from assay.core.config import unknown_key
from assay.core.engine import Engine, Task
from assay.core.errors import StudyError

GROUP = "assay.engines"


def find_task(engine: str, task: str | None, *, root: Path, where: str) -> tuple[Engine, Task]:
    """The engine and task of these names; a lone task needs no name.

    Args:
        engine: Name of an entry point of the group `assay.engines`, or `module:NAME` for an
            `Engine` in a module of the project folder.
        task: Name of one of its tasks.
        root: The project folder, from which `module` is imported.
        where: File and table, for the message.

    Raises:
        StudyError: No such engine or task, or the engine's own imports fail.
    """
    try:
        loaded = from_project(engine, root) if ":" in engine else _installed(engine, where)
    except (ImportError, AttributeError) as error:
        raise StudyError(
            f"{where}: engine '{engine}' cannot be imported: {error}. Correct module:NAME, or "
            "install what it needs: pip install 'assay[engines]'."
        ) from error
    if not isinstance(loaded, Engine):
        raise StudyError(
            f"{where}: engine '{engine}' is a {type(loaded).__name__}, not an "
            "assay.core.engine.Engine (docs/write-an-engine.md)."
        )
    if task is None and len(loaded.tasks) == 1:
        return loaded, next(iter(loaded.tasks.values()))
    if task is None or task not in loaded.tasks:
        raise StudyError(
            f"{where}: task {task!r} is not one of engine '{engine}': {', '.join(loaded.tasks)}."
        )
    return loaded, loaded.tasks[task]


def _installed(name: str, where: str) -> Any:
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        hint = unknown_key(name, sorted(found), what="engine")
        raise StudyError(
            f"{where}: {hint} An engine is an entry point of the group '{GROUP}', or module:NAME "
            "in the project folder (docs/write-an-engine.md)."
        )
    return found[name].load()


def from_project(name: str, root: Path) -> Any:
    """`module:NAME`, with the project folder first where modules are looked for."""
    module, _, attribute = name.partition(":")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return getattr(importlib.import_module(module), attribute)
