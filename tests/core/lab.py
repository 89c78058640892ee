"""Builders for tests of the lab: a fake engine, study files, run directories, a project folder.

Run directories are made by the real `create_run` and `RunWriter`. A study names the engine as
`lab:ENGINE`, since pytest puts this folder on the path.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from assay.core.engine import Engine, Metric, Task
from assay.core.errors import ConfigError
from assay.core.evidence import Selection, select
from assay.core.files import to_json, write_atomic
from assay.core.index import Index
from assay.core.ledger import read_ledger
from assay.core.plan import PlannedRun, expand
from assay.core.run import (
    RunWriter,
    _digests,
    attempt_name,
    create_run,
    new_record,
    next_attempt,
)
from assay.core.settings import Settings
from assay.core.study import Study, load_study

STUDY = """
[study]
id = "s"
question = "Is b better than a?"
engine = "lab:ENGINE"
factor = "method"
baseline = "a"
seeds = { init = [1, 2, 3], data = "init" }
budget = { steps = 100 }
[config]
width = 8
[arms.a]
method = "a"
[arms.b]
method = "b"
[claims.better]
says = "b is better than a."
criterion = 'diff("test/score", "b", "a") > 0'
phase = "pilot"
"""
SCORE, LOSS = "test/score", "train/loss_nats"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """Configuration of the fake task."""

    method: str = "a"
    lr: float = 0.1
    width: int = 4
    alpha: float = 0.0
    steps: int = 10

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr must be above 0; got {self.lr}.")


def _run(configs: Sequence[Any], contexts: Sequence[Any]) -> None:
    raise AssertionError("tests of the lab make run directories themselves")


ENGINE = Engine(
    name="lab",
    tasks={
        "fit": Task(
            name="fit",
            config=FitConfig,
            seeds=("init", "data"),
            metrics={
                SCORE: Metric(says="Share of right answers.", goal="max", low=0.0, high=1.0),
                LOSS: Metric(says="Training loss.", goal="min", low=0.0),
                "model/parameters": Metric(says="Trained numbers."),
            },
            run=_run,
            stackable=frozenset({"lr"}),
            budget=("steps",),
        )
    },
)

PROVENANCE: dict[str, Any] = {
    "schema": 1,
    "code": {
        "vcs": "git",
        "commit": "c" * 40,
        "dirty": False,
        "diff_sha256": None,
        "tree_sha256": "t" * 64,
        "source_sha256": "5" * 64,
    },
    "python": {"version": "3.11.7", "implementation": "cpython"},
    "packages": {"decisive": {"numpy": "2.0.0"}, "installed": {"rich": "14.0"}},
    "machine": {"os": "Linux", "cpu": "a cpu", "cores": 2, "memory_gib": 8},
    "device": "cpu",
    "threads": 1,
}
ENV: dict[str, Any] = {"values": {"LANG": "C"}, "digests": {}, "redacted": [], "key": "k"}


def edit(text: str, *pairs: tuple[str, str]) -> str:
    """A text with parts replaced; each part must be there once."""
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested tables as one; the second wins."""
    result = dict(a)
    for key, value in b.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def add_run(
    runs_dir: Path,
    planned: PlannedRun,
    *,
    summary: Mapping[str, float] | None = None,
    series: Mapping[str, Sequence[float]] | None = None,
    status: str | None = "completed",
    phase: str = "pilot",
    generation: int = 1,
    provenance: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    error: str | None = None,
    artifact: bytes | None = None,
    **fields: Any,
) -> Path:
    """Make a run directory as `assay run` would; `status` None leaves it open."""
    record = new_record(
        study=planned.study,
        arm=planned.arm,
        identity=planned.identity,
        cell=dict(planned.cell),
        cell_label=planned.cell_label,
        seeds=dict(planned.seeds),
        seed_label=planned.seed_label,
        engine="lab",
        task="fit",
        config=dict(planned.config),
        cmd=list(planned.cmd) if planned.cmd else None,
        generation=generation,
        phase=phase,
        budget={k: float(v) for k, v in planned.budget.items()},
        **fields,
    )
    folder = create_run(runs_dir, record)
    attempt(folder, summary, series, status, provenance, env, error=error, artifact=artifact)
    return folder


def attempt(
    folder: Path,
    summary: Mapping[str, float] | None = None,
    series: Mapping[str, Sequence[float]] | None = None,
    status: str | None = "completed",
    provenance: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    *,
    error: str | None = None,
    artifact: bytes | None = None,
) -> RunWriter:
    """The next attempt of a run: its start, rows, final values and end."""
    number = next_attempt(folder)
    writer = RunWriter(folder, attempt=number)
    establish(writer, provenance, env)
    for step in range(max((len(s) for s in (series or {}).values()), default=0)):
        row = {name: s[step] for name, s in (series or {}).items() if step < len(s)}
        writer.log(row, step=step)
    if summary:
        writer.summary(summary)
    if artifact is not None:
        writer.save("artifact", artifact)
    writer.spent(steps=100.0, process_s=2.0)
    if status is None:
        writer.close()
    else:
        writer.finish(status, error=error)
    return writer


def establish(
    writer: RunWriter,
    provenance: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
) -> None:
    """Record what runs, as a worker does before it computes."""
    folder, number = writer.folder, writer.attempt
    facts = to_json(merged(PROVENANCE, provenance or {}))
    write_atomic(folder / attempt_name("provenance.json", number), facts)
    write_atomic(folder / attempt_name("env.json", number), to_json(merged(ENV, env or {})))


def edit_json(path: Path, **changes: Any) -> None:
    """Change a JSON file in place, so that the time of its folder stays."""
    path.write_bytes(to_json(orjson.loads(path.read_bytes()) | changes))


def reseal(folder: Path, attempt: int = 1) -> None:
    """Record the digests of a run's files anew: what somebody would do who edits with care."""
    end = folder / attempt_name("end.json", attempt)
    edit_json(end, files=_digests(folder, attempt))


@dataclass(slots=True)
class Project:
    """A project folder with one study."""

    root: Path
    text: str = STUDY
    name: str = "s"
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "assay.toml").touch()
        self.write(self.text)

    @property
    def settings(self) -> Settings:
        return Settings(
            root=self.root, cache_dir=self.root / ".cache", environment=self.environment
        )

    @property
    def path(self) -> Path:
        return self.root / "studies" / f"{self.name}.toml"

    def write(self, text: str) -> Study:
        """Write the study file and load it."""
        self.text = text
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(text, "utf-8")
        return self.study

    @property
    def study(self) -> Study:
        return load_study(self.path)

    @property
    def runs(self) -> Path:
        return self.settings.runs_dir

    def plan(self, arm: str | None = None, seed: str | None = None) -> list[PlannedRun]:
        """The planned runs (of an arm, of a seed)."""
        return [
            run
            for run in expand(self.study)
            if arm in (None, run.arm) and seed in (None, run.seed_label)
        ]

    def add(self, arm: str, seed: str | int, value: float | None, **more: Any) -> Path:
        """A run of an arm and seed whose score is `value` (None: it has none)."""
        (planned,) = self.plan(arm, str(seed))
        summary = {} if value is None else {SCORE: value}
        return add_run(self.runs, planned, summary=summary, **more)

    def fill(self, **scores: Sequence[float]) -> dict[tuple[str, str], Path]:
        """Runs of arms with a score a seed, in the order of the planned seeds."""
        return {
            (arm, run.seed_label): self.add(arm, run.seed_label, value)
            for arm, values in scores.items()
            for run, value in zip(self.plan(arm), values, strict=False)
        }

    @contextmanager
    def index(self, name: str | None = None) -> Any:
        """The index, up to date; a name gives another file."""
        path = self.settings.index_path if name is None else self.settings.cache_dir / name
        with Index(path, self.runs) as index:
            index.refresh()
            yield index

    def events(self) -> list[Any]:
        return read_ledger(self.settings.ledger_dir)

    def select(self) -> Selection:
        """The runs that count now."""
        with self.index() as index:
            return select(self.study, index, self.events())


def run_id(folder: Path) -> str:
    """The id in the name of a run directory."""
    return folder.name.rpartition("-")[2]
