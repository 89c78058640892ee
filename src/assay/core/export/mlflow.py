"""An MLflow tracking folder (`mlruns`): one experiment a study, one MLflow run a run.

A folder, not a database: MLflow's databases turn infinities into the largest finite number.
MLflow 3 asks for `MLFLOW_ALLOW_FILE_STORE=true` before it opens a folder. It keeps whole
milliseconds of a time.
"""

import hashlib
import importlib
import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from assay.core.errors import ConfigError
from assay.core.export.gather import SUMMARY, ExportedRun
from assay.core.export.whole import whole
from assay.core.settings import variables

METRICS_A_CALL = 1000
PARAMS_A_CALL = 100
LONGEST_NAME = 200
LONGEST_VALUE = 5900
"""A little below what MLflow would cut off without a word."""
_STATUSES = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def write_mlflow(runs: Iterable[ExportedRun], out: Path) -> None:
    """Write runs as a folder for `mlflow ui --backend-store-uri OUT`.

    Raises:
        StoreError: `out` exists or cannot be written.
        ConfigError: The library mlflow is not installed.
    """
    with _library() as (tracking, entities), whole(out) as temporary:
        client = tracking.MlflowClient(tracking_uri=temporary.as_uri())
        experiments: dict[str, str] = {}
        for run in runs:
            name = _experiment_name(str(run.about["study"]))
            if name not in experiments:
                experiments[name] = client.create_experiment(name)
            _write_run(client, entities, experiments[name], run)
        _settle(temporary, temporary.with_name(out.name))


@contextmanager
def _library() -> Iterator[tuple[Any, Any]]:
    """The client and its records, with folders allowed and reports to the makers off."""
    try:
        telemetry = importlib.import_module("mlflow.telemetry")
        tracking = importlib.import_module("mlflow.tracking")
        entities = importlib.import_module("mlflow.entities")
    except ImportError as error:
        raise ConfigError(
            f"--to mlflow needs the library mlflow, which cannot be imported ({error}). Install "
            "it with: pip install 'assay[mlflow]'"
        ) from error
    with variables(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_ALLOW_FILE_STORE="true"):
        telemetry.set_telemetry_client()
        yield tracking, entities


def _write_run(client: Any, entities: Any, experiment: str, run: ExportedRun) -> None:
    tags = {f"assay.{key}": _text(value) for key, value in run.about.items() if value is not None}
    if run.about["commit"] is not None:
        # Where MLflow's own pages look for it.
        tags["mlflow.source.git.commit"] = str(run.about["commit"])
    if run.about["invalidated"]:
        tags["mlflow.note.content"] = f"Invalidated: {run.about['because']}"
    names = valid_names([*run.series, *(SUMMARY + name for name in run.summary)])
    keys = valid_names(run.params)
    for renamed in (names, keys):
        tags |= {f"assay.name.{new}": old for old, new in renamed.items() if new != old}
    made = client.create_run(
        experiment,
        start_time=_milliseconds(run.created_s),
        run_name=run.name,
        tags={key: _fit(value) for key, value in tags.items()},
    ).info.run_id
    params = iter(
        [entities.Param(keys[key], _fit(_text(value))) for key, value in run.params.items()]
    )
    while batch := list(islice(params, PARAMS_A_CALL)):
        client.log_batch(made, params=batch)
    metrics = _metrics(entities, run, names)
    while batch := list(islice(metrics, METRICS_A_CALL)):
        client.log_batch(made, metrics=batch)
    status = _STATUSES.get(str(run.about["status"]))
    if status is not None and run.ended_s is not None:
        client.set_terminated(made, status=status, end_time=_milliseconds(run.ended_s))


def _experiment_name(study: str) -> str:
    """A name that MLflow takes: it searches by name, which no quotation mark survives."""
    name = re.sub(r"['\"`\s]", "_", study)[:LONGEST_NAME]
    # MLflow makes an experiment of this name by itself.
    return f"{name}_" if name == "Default" else name


def _metrics(entities: Any, run: ExportedRun, names: Mapping[str, str]) -> Iterator[Any]:
    for name, series in run.series.items():
        for step, value, time in zip(*(column.tolist() for column in series), strict=True):
            yield entities.Metric(names[name], value, _milliseconds(time), step)
    ended_s = run.created_s if run.ended_s is None else run.ended_s
    for name, value in run.summary.items():
        yield entities.Metric(
            names[SUMMARY + name], float(value), _milliseconds(ended_s), run.last_step
        )


def valid_names(names: Iterable[str]) -> dict[str, str]:
    """Name → the name in MLflow, where names are paths of files.

    Letters that MLflow refuses become "_". A name that would then be another's, or a folder where
    another is a file ("loss" and "loss/train"), gets a digest behind it.
    """
    result: dict[str, str] = {}
    used: set[str] = set()
    folders: set[str] = set()
    for name in sorted(names):
        new = posixpath.normpath(re.sub(r"[^\w\-. /:]", "_", name)).strip("/")
        if new.startswith(".."):
            new = "_" + new
        if len(new) > LONGEST_NAME or new == "." or _taken(new, used, folders):
            new = f"{new[:LONGEST_NAME]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        if _taken(new, used, folders):
            new = hashlib.sha256(name.encode()).hexdigest()
        result[name] = new
        used.add(new)
        folders.update(_parents(new))
    return result


def _taken(name: str, used: set[str], folders: set[str]) -> bool:
    return name in used or name in folders or not used.isdisjoint(_parents(name))


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _fit(text: str) -> str:
    """A text that MLflow takes whole; a longer one ends with what became of it."""
    if len(text) <= LONGEST_VALUE:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[: LONGEST_VALUE - 150]}… [cut: {len(text)} characters, sha256 {digest}]"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _settle(temporary: Path, out: Path) -> None:
    """Let the records name the folder where they will lie, not the one where they were written."""
    for path in temporary.rglob("meta.yaml"):
        text = path.read_text("utf-8")
        path.write_text(text.replace(temporary.as_uri(), out.as_uri()), "utf-8")
