"""Finding engines: the entry points `assay.engines` of whatever is installed."""

from importlib.metadata import entry_points

from assay.core.config import unknown_key
from assay.core.engine import Engine, Task
from assay.core.errors import StudyError

GROUP = "assay.engines"


def find_task(engine: str, task: str | None, *, where: str) -> tuple[Engine, Task]:
    """The engine and task of these names; a lone task needs no name.

    Raises:
        StudyError: No such engine or task, or the engine's own imports fail.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if engine not in found:
        raise StudyError(
            f"{where}: engine: {unknown_key(engine, sorted(found)).replace('key', 'engine')} "
            "An engine registers itself as an entry point of the group 'assay.engines' "
            "(docs/write-an-engine.md)."
        )
    try:
        loaded = found[engine].load()
    except ImportError as error:
        raise StudyError(
            f"{where}: engine '{engine}' cannot be imported: {error}. "
            "Install its requirements: pip install 'assay[engines]'."
        ) from error
    if not isinstance(loaded, Engine):
        raise StudyError(
            f"{where}: entry point '{found[engine].value}' is a {type(loaded).__name__}, not an "
            "assay.core.engine.Engine."
        )
    if task is None and len(loaded.tasks) == 1:
        return loaded, next(iter(loaded.tasks.values()))
    if task is None or task not in loaded.tasks:
        raise StudyError(
            f"{where}: task {task!r} is not one of engine '{engine}': {', '.join(loaded.tasks)}."
        )
    return loaded, loaded.tasks[task]
