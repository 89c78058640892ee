"""MLflow's `mlruns` folders as reported runs. They are plain files; mlflow itself is not needed."""

import importlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assay.core.errors import ConfigError, DataError
from assay.core.foreign.records import (
    Draft,
    ReportedRun,
    ReportedRuns,
    entries,
    files,
    is_folder,
    must_be_folder,
    plain,
)

META_NAME = "meta.yaml"
META_LIMIT_BYTES = 1 << 20
TEXT_LIMIT_BYTES = 1 << 20


def read_mlruns(folder: Path) -> ReportedRuns:
    """Read an `mlruns` folder, the folder of one experiment, or that of one run.

    Deleted runs are read as well, and marked with the tag `lifecycle_stage`.

    Raises:
        DataError: It is none of these.
        ConfigError: PyYAML is not installed.
    """
    must_be_folder(folder)
    runs: list[ReportedRun] = []
    problems: list[str] = []
    experiments: dict[Path, str] = {}
    found = sorted(with_meta(folder))
    if not found:
        raise DataError(
            f"{folder} must be an mlruns folder, with a {META_NAME} in it, in the folders of its "
            "experiments or in those of their runs; it has none. A database of MLflow is not read: "
            "give the folder of a file store."
        )
    for place in found:
        source = place.relative_to(folder).as_posix()
        try:
            meta = _read_meta(place / META_NAME, source)
            if "run_id" in meta or "run_uuid" in meta:
                experiment = experiments.get(place.parent, "")
                runs.append(_read_mlrun(place, source, meta, experiment))
            else:
                experiments[place] = str(meta.get("name", ""))
        except DataError as error:
            problems.append(plain(str(error)))
    return ReportedRuns(kind="mlruns", folder=folder, runs=runs, problems=problems)


def with_meta(folder: Path) -> Iterator[Path]:
    """The folder itself, its experiments and their runs, as far as they have a `meta.yaml`."""
    levels = [folder]
    for _ in range(3):
        for place in levels:
            if (place / META_NAME).is_file() and not (place / META_NAME).is_symlink():
                yield place
        # What MLflow deleted for good lies in `.trash`.
        levels = [
            Path(e.path)
            for place in levels
            for e in entries(place)
            if is_folder(e) and not e.name.startswith(".")
        ]


def _read_meta(path: Path, source: str) -> Mapping[str, Any]:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise ConfigError(
            f"An mlruns folder needs the library PyYAML, which cannot be imported ({error}). "
            "Install it with: pip install 'assay[mlflow]'"
        ) from error
    try:
        size = path.stat().st_size
        if size > META_LIMIT_BYTES:
            raise ValueError(f"it has {size} bytes, more than {META_LIMIT_BYTES}")
        meta = yaml.load(path.read_text("utf-8"), Loader=yaml.SafeLoader)
        if not isinstance(meta, dict):
            raise ValueError(f"it holds a {type(meta).__name__}, not a table")  # noqa: TRY004
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"{source}/{META_NAME} must be a table as MLflow writes it, but cannot be read: {why}. "
            "Restore it from a copy; it was left out."
        ) from error
    return meta


def _read_mlrun(folder: Path, source: str, meta: Mapping[str, Any], experiment: str) -> ReportedRun:
    draft = Draft()
    for part, into in (("params", draft.params), ("tags", draft.tags)):
        for path in files(folder / part):
            name = path.relative_to(folder / part).as_posix()
            text = _small_text(path, draft)
            if text is not None:
                into[name] = text
    for path in files(folder / "metrics"):
        name = path.relative_to(folder / "metrics").as_posix()
        points = _read_history(path, name, draft)
        if points:
            draft.points[name] = points
    if experiment:
        draft.tags.setdefault("experiment", experiment)
    if meta.get("lifecycle_stage", "active") != "active":
        draft.tags["lifecycle_stage"] = str(meta["lifecycle_stage"])
    name = meta.get("run_name") or draft.tags.get("mlflow.runName") or meta.get("run_id") or source
    return draft.done(name=str(name), source=source, status=_status(meta.get("status")))


def _read_history(path: Path, name: str, draft: Draft) -> list[tuple[int, float, float]]:
    """The lines "milliseconds value step" of one metric; older ones have no step."""
    try:
        content = path.read_bytes()
    except OSError as error:
        draft.problems.append(f"metrics/{name} cannot be read: {error.strerror or error}")
        return []
    points, bad = [], 0
    whole, _, rest = content.rpartition(b"\n")
    # A number without the end of its line may have lost digits.
    draft.torn_lines += bool(rest)
    for line in filter(None, whole.split(b"\n")):
        point = _as_point(line)
        if point is None:
            bad += 1
        else:
            points.append(point)
    if bad:
        draft.bad_lines += bad
        draft.problems.append(f"metrics/{name}: {bad} damaged line(s) skipped")
    return points


def _as_point(line: bytes) -> tuple[int, float, float] | None:
    parts = line.split()
    # The fourth and fifth name a data set.
    if len(parts) not in (2, 3, 5):
        return None
    try:
        milliseconds, value = int(parts[0]), float(parts[1])
        step = int(parts[2]) if len(parts) > 2 else 0
    except ValueError:
        return None
    if not -(2**63) <= step < 2**63 or not math.isfinite(seconds := milliseconds / 1000):
        return None
    return step, value, seconds


def _small_text(path: Path, draft: Draft) -> str | None:
    try:
        if path.stat().st_size <= TEXT_LIMIT_BYTES:
            return path.read_bytes().decode("utf-8", "replace")
        why = f"is longer than {TEXT_LIMIT_BYTES} bytes"
    except OSError as error:
        why = f"cannot be read: {error.strerror or error}"
    draft.problems.append(f"{path.parent.name}/{path.name} {why}")
    return None


def _status(given: object) -> str:
    """MLflow writes the number of a status."""
    words = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
    return words.get(given, "") if isinstance(given, int) else str(given or "")
