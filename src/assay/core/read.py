"""Reading one run directory into the rows that the index keeps of it. Pure; runs in a pool."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from assay.core.analysis import AnalysisResult, read_results, rows_of
from assay.core.artifacts import ArtifactStore
from assay.core.config import flatten
from assay.core.errors import StoreError
from assay.core.files import explicit, read_json
from assay.core.metrics import RunMetrics, Series, downsample, metrics_files, read_metrics
from assay.core.provenance import flat
from assay.core.run import Event, RunState, attempt_name, read_run, verify_seal

QUIET_EVENTS = ("started", "summary", "spent", "ended")
MACHINE_METRICS = ("speed/", "time/", "system/")
"""Measurements of the machine: they differ between runs that computed the same."""


OWN_FACTS = ("config.", "seed.", "spent.", "budget.", "data.", "argv.", "scripts.")
"""Beginnings of the facts that are a run's own; the others are stored once for many runs."""


class IndexedRun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A run as the index knows it: `run.json`, how it ended, and what to tell about it.

    Attributes:
        path: Below `runs/`.
        cell_label: The cell in words, as it was when the run was made.
        seed_label: The seeds that varied in the study when the run was made.
        generation: Above 1 for a run that repeats an earlier one.
        status: completed, failed, interrupted, or open (running or killed).
        attempts: Number of attempts.
        events: What a reader of the log should know.
        problems: Damage that was found while reading.
        failures: A sentence for every attempt that failed, whatever came after it.
        process_s: Process seconds of all attempts; `spent` tells those of the last.
        results_sha256: Digest of all metric rows without times; equal for equal results.
        code: Commit (short), with "+" if there were changes; "" if unknown.
        artifacts: Name → sha256 of each artifact as it is now.
        analyses: Analysis `NAME@VERSION` → name and sha256 of what it read.
    """

    id: str
    path: str
    study: str
    arm: str
    cell: dict[str, Any]
    cell_label: str
    seeds: dict[str, int]
    seed_label: str
    engine: str | None
    task: str | None
    config: dict[str, Any]
    cmd: list[str] | None
    identity: str
    generation: int
    phase: str
    budget: dict[str, float]
    created_at: str
    status: str
    attempts: int
    ended_at: str | None
    duration_s: float | None
    error: str | None
    spent: dict[str, float]
    torn_lines: int
    events: list[str]
    problems: list[str]
    failures: list[str]
    process_s: float
    results_sha256: str | None
    code: str
    artifacts: dict[str, str] = {}
    analyses: dict[str, dict[str, str]] = {}

    def to_json(self) -> bytes:
        """For storage."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(text: bytes) -> "IndexedRun":
        """From storage."""
        return _DECODER.decode(text)

    @property
    def key(self) -> tuple[str, str, str]:
        """Arm, cell and seed: its place in the study."""
        return (self.arm, self.cell_label, self.seed_label)


_DECODER = msgspec.json.Decoder(IndexedRun)


class MetricRow(msgspec.Struct, frozen=True, order=True, gc=False):
    """The final value of one metric of one run.

    `value` is what the run gave as its summary (`source` "summary"), else the value at the
    highest step ("last"). The index gives None for NaN, which SQLite has no word for; infinities
    stay. `num_points`, `non_finite`, `last_step`, `low` and `high` (of the finite values) describe
    the series.
    """

    run: str
    name: str
    value: float | None
    source: str
    num_points: int
    non_finite: int
    last_step: int | None
    low: float | None
    high: float | None

    def _asdict(self) -> dict[str, Any]:
        """As a table, for display; named as in a named tuple."""
        return msgspec.structs.asdict(self)


class CurveRow(NamedTuple):
    """A thinned series."""

    run: str
    name: str
    steps: NDArray[np.int64]
    points: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """All that the index keeps of a run.

    Attributes:
        run: What the run table shows.
        facts: Flat realised provenance as JSON, without `own_facts`: the same in many runs.
        facts_digest: Digest of `facts`.
        own_facts: The facts that differ between the runs of an arm, as JSON.
        metrics: Final values.
        curves: Thinned series.
    """

    run: IndexedRun
    facts: str
    facts_digest: str
    own_facts: str
    metrics: list[MetricRow]
    curves: list[CurveRow]


def load_run(folder: Path) -> LoadedRun | str:
    """Read a run directory; a sentence instead if it cannot be read.

    A completed run is compared with its seal, so that an edit of any file shows. Whatever is wrong
    with one directory must not keep the others from being read, so damage that no reader of a
    file foresaw is a sentence too.
    """
    try:
        state = read_run(folder)
        if state.end is not None and state.status == "completed":
            verify_seal(state, state.end)
        metrics = read_metrics(folder, state.starts)
        facts = _facts(folder, state)
        own = {k: v for k, v in facts.items() if k.startswith(OWN_FACTS)}
        shared = _json({k: v for k, v in facts.items() if k not in own})
        results = read_results(folder)
        run = _indexed(folder, state, metrics, facts, results)
        return LoadedRun(
            run=run,
            facts=shared,
            facts_digest=hashlib.sha256(shared.encode()).hexdigest(),
            own_facts=_json(own),
            metrics=_rows(run.id, state.summary, metrics.series)
            + [
                MetricRow(run.id, name, value, source, 0, 0, None, None, None)
                for name, value, source in rows_of(results)
            ],
            curves=[
                CurveRow(run.id, name, *downsample(series.steps, series.values))
                for name, series in metrics.series.items()
                if series.steps.size > 1
            ],
        )
    except StoreError as error:
        return str(error)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        return (
            f"{folder} is damaged: {type(error).__name__}: {error}. Restore it from a copy, or "
            "move it out of runs/ and run again."
        )


def _json(facts: dict[str, Any]) -> str:
    return orjson.dumps(explicit(facts), option=orjson.OPT_SORT_KEYS).decode()


def _indexed(
    folder: Path,
    state: RunState,
    metrics: RunMetrics,
    facts: Mapping[str, Any],
    results: list[AnalysisResult],
) -> IndexedRun:
    record, end = state.record, state.end
    commit = facts.get("code.commit")
    return IndexedRun(
        **{
            name: getattr(record, name)
            for name in (
                *("id", "study", "arm", "cell", "cell_label", "seeds", "seed_label", "engine"),
                *("task", "config", "cmd", "identity", "generation", "phase", "budget"),
                "created_at",
            )
        },
        path="/".join(folder.parts[-4:]),
        status=state.status,
        attempts=state.attempts,
        ended_at=end.ended_at if end else None,
        duration_s=end.duration_s if end else None,
        error=end.error if end else None,
        spent=state.spent,
        torn_lines=state.torn_lines,
        events=[_told(e) for e in state.events if e.kind not in QUIET_EVENTS],
        problems=[*state.problems, *metrics.problems],
        failures=[
            f"attempt {attempt} failed: {_last_line(end.error)}"
            for attempt, end in state.ends.items()
            if end.status == "failed"
        ],
        process_s=sum(end.spent.get("process_s", 0.0) for end in state.ends.values()),
        results_sha256=_results_digest(metrics.series, state.summary),
        artifacts={n: a.sha256 for n, a in ArtifactStore(folder).current().items()},
        analyses={f"{r.name}@{r.version}": r.inputs for r in results},
        code=f"{str(commit)[:9]}{'+' if facts.get('code.dirty') else ''}" if commit else "",
    )


def _told(event: Event) -> str:
    return f"{event.kind} (attempt {event.attempt}): {event.message}"


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1].strip()[:200] if lines else "no reason was recorded"


def _facts(folder: Path, state: RunState) -> dict[str, Any]:
    """Flat provenance of all attempts; a fact that changed between attempts shows both values.

    Raises:
        StoreError: The run is completed, and an attempt that its numbers come from has none.
    """
    merged: dict[str, Any] = {}
    needed: set[int] = set()
    if state.status == "completed":
        needed = {state.attempts, *(attempt for _, attempt, _ in metrics_files(folder))}
    for attempt in range(1, state.attempts + 1):
        paths = [folder / attempt_name(name, attempt) for name in ("provenance.json", "env.json")]
        lacking = [path.name for path in paths if not path.exists()]
        if lacking and attempt in needed:
            raise StoreError(
                f"{folder} has no {' and no '.join(lacking)}: what ran in attempt {attempt} is not "
                "on record, so the run is no evidence. Restore it from a copy, or move the run out "
                "of runs/ and run again."
            )
        if paths[0].name in lacking:
            continue
        environment = {} if lacking else read_json(paths[1])
        facts = flat({**read_json(paths[0]), "environment": environment})
        for key, value in facts.items():
            before = merged.get(key, value)
            merged[key] = value if before == value else f"{before} → {value}"
    record = state.record
    for prefix, values in (("config", record.config), ("seed", record.seeds)):
        merged.update({f"{prefix}.{k}": v for k, v in flatten(values).items()})
    merged.update({f"budget.{k}": v for k, v in record.budget.items()})
    merged.update({f"spent.{k}": v for k, v in state.spent.items()})
    return merged


def _rows(run: str, summary: Mapping[str, float], series: Mapping[str, Series]) -> list[MetricRow]:
    rows = []
    for name in sorted({*summary, *series}):
        count, non_finite, last_step, low, high = 0, 0, None, None, None
        source, value = "summary", summary.get(name)
        if name in series:
            steps, values, _ = series[name]
            finite = values[np.isfinite(values)]
            count, non_finite = int(values.size), int(values.size - finite.size)
            # The last of the rows with the highest step, in the order of logging.
            last = int(values.size - 1 - np.argmax(steps[::-1]))
            last_step = int(steps[last])
            if finite.size:
                low, high = float(finite.min()), float(finite.max())
            if value is None:
                source, value = "last", float(values[last])
        rows.append(MetricRow(run, name, value, source, count, non_finite, last_step, low, high))
    return rows


def _results_digest(series: Mapping[str, Series], summary: Mapping[str, float]) -> str | None:
    """Digest of what was measured, without times and speeds."""
    hasher = hashlib.sha256()
    names = [n for n in sorted({*series, *summary}) if not n.startswith(MACHINE_METRICS)]
    if not names:
        return None
    for name in names:
        hasher.update(name.encode() + b"\0")
        if name in series:
            hasher.update(np.ascontiguousarray(series[name].steps).tobytes())
            hasher.update(np.ascontiguousarray(series[name].values).tobytes())
        if name in summary:
            hasher.update(np.float64(summary[name]).tobytes())
    return hasher.hexdigest()
