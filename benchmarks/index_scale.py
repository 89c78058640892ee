"""How the index scales: 10,000 run directories of 1,000 points, read cold and warm.

    python benchmarks/index_scale.py [--out FOLDER]

The run directories are written straight to disk in the real format (twins of one directory that
the real writer made), in a temporary folder. Measured are a cold index (no index file; the
directories are in the page cache), a warm refresh with the whole table, and a verdict; medians
of `REPEATS`, each in this process. Targets (docs/design): cold <= 30 s, warm table <= 300 ms.
"""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "core"))
import lab

from assay.core.evidence import select
from assay.core.index import Index
from assay.core.plan import PlannedRun, expand
from assay.core.provenance import capture
from assay.core.run import _digests, append_event
from assay.core.study import Study, load_study
from assay.core.table import build_table, default_metrics
from assay.core.verdict import judge_study

POINTS = 1_000
REPEATS = 5
STUDY = """
[study]
id = "scale"
question = "Does the index scale?"
engine = "lab:ENGINE"
factor = "method"
seeds = {{ init = {seeds}, data = "init" }}
budget = {{ steps = 1000 }}
[grid]
width = {widths}
alpha = [0.0, 0.25, 0.5, 0.75, 1.0]
{arms}
[claims.better]
says = "m1 is better than m0 at every width and alpha."
criterion = 'every("width", every("alpha", diff("test/score", "m1", "m0") > 0))'
phase = "pilot"
"""


@dataclass(frozen=True)
class Measured:
    """Seconds of each repeat."""

    name: str
    seconds: list[float]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def main() -> None:
    """Generate, measure, print a record and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for record.json and table.md")
    parser.add_argument("--runs", type=int, default=10_000, help="a multiple of 1,000")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        study = write_study(root, options.runs)
        planned = expand(study)
        generate(root / "runs", planned)
        load_before = os.getloadavg()[0]
        record = {
            "benchmark": "index_scale",
            "runs": len(planned),
            "points_per_run": POINTS,
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "load_1min_before": round(load_before, 2),
            "index_mib": 0.0,
            "results": {},
        }
        index_path = root / "cache" / "index.sqlite"
        for measured in measure(root, study, index_path):
            record["results"][measured.name] = {
                "median_s": round(measured.median_s, 4),
                "all_s": [round(s, 4) for s in measured.seconds],
            }
        record["index_mib"] = round(index_path.stat().st_size / 2**20, 1)
        record["load_1min_after"] = round(os.getloadavg()[0], 2)
    text = json.dumps(record, indent=2)
    print(text)
    print(markdown(record))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "record.json").write_text(text + "\n", "utf-8")
        (options.out / "table.md").write_text(markdown(record), "utf-8")


def write_study(root: Path, num_runs: int) -> Study:
    """20 arms × 10 widths × 5 alphas × seeds; the number of seeds makes up the number of runs."""
    (root / "assay.toml").touch()
    path = root / "scale.toml"
    seeds = list(range(num_runs // 1_000))
    arms = "\n".join(f'[arms.m{i}]\nmethod = "m{i}"' for i in range(20))
    path.write_text(STUDY.format(seeds=seeds, widths=list(range(1, 11)), arms=arms), "utf-8")
    return load_study(path)


def generate(runs_dir: Path, planned: list[PlannedRun]) -> None:
    """Run directories as `assay run` leaves them; the first is made by the real writer."""
    series = {lab.LOSS: [1.0] * 3}
    root = Path(__file__).resolve().parents[1]
    facts = capture(root=root, argv=[sys.executable, "-m", "assay"], env=dict(os.environ), salt=b"")
    env = facts.pop("environment")
    first = lab.add_run(
        runs_dir, planned[0], summary={lab.SCORE: 0.5}, series=series, provenance=facts, env=env
    )
    files = {p.name: p.read_bytes() for p in first.iterdir() if p.is_file()}
    own = {name: orjson.loads(files.pop(name)) for name in ("run.json", "end.json")}
    files.pop("metrics-0-1.jsonl")
    for path in sorted(first.iterdir()):
        path.unlink() if path.is_file() else path.rmdir()
    first.rmdir()
    for number, run in enumerate(planned):
        write_twin(runs_dir, run, number, files, own)


def write_twin(
    runs_dir: Path, run: PlannedRun, number: int, files: dict[str, bytes], own: dict[str, dict]
) -> None:
    name = f"{number:026d}"
    folder = runs_dir / run.study / run.arm / run.cell_label / f"{run.seed_label}-{name}"
    folder.mkdir(parents=True)
    record = own["run.json"] | {
        "id": name,
        "arm": run.arm,
        "cell": dict(run.cell),
        "cell_label": run.cell_label,
        "seeds": dict(run.seeds),
        "seed_label": run.seed_label,
        "config": dict(run.config),
        "identity": run.identity,
    }
    score = 0.5 + 0.4 * math.sin(number)
    summary = {lab.SCORE: score, "model/parameters": 1128.0}
    (folder / "run.json").write_bytes(orjson.dumps(record))
    for file, content in files.items():
        (folder / file).write_bytes(content)
    with (folder / "metrics-0-1.jsonl").open("wb") as out:
        out.writelines(
            orjson.dumps(
                {
                    "step": step,
                    "time": 1.7e9 + step,
                    "values": {lab.LOSS: 3 / (1 + step) + 0.01 * math.sin(number + step)},
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
            for step in range(POINTS)
        )
    append_event(folder, 1, "summary", "", **summary)
    end = own["end.json"] | {"summary": summary, "files": _digests(folder, 1)}
    (folder / "end.json").write_bytes(orjson.dumps(end))


def measure(root: Path, study: Study, index_path: Path) -> list[Measured]:
    """Cold, then warm."""

    def cold() -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{index_path}{suffix}").unlink(missing_ok=True)
        with Index(index_path, root / "runs") as index:
            found = index.refresh()
            assert found.read, "nothing was read"
            assert not index.broken(), index.broken()[:3]

    def warm_refresh() -> None:
        with Index(index_path, root / "runs") as index:
            assert index.refresh("scale").read == 0

    def warm_table() -> None:
        with Index(index_path, root / "runs") as index:
            index.refresh("scale")
            selection = select(study, index, [])
        table = build_table(study, selection, [lab.SCORE])
        assert len(selection.counting) == len(selection.planned)
        assert all(row.n for row in table.rows)

    def warm_table_default() -> None:
        with Index(index_path, root / "runs") as index:
            index.refresh("scale")
            selection = select(study, index, [])
        build_table(study, selection, default_metrics(study, selection))

    def warm_verdict() -> None:
        with Index(index_path, root / "runs") as index:
            index.refresh("scale")
            judge_study(study, index, [])

    def curves() -> None:
        with Index(index_path, root / "runs") as index:
            assert index.curves("scale", lab.LOSS)

    works: list[Callable[[], None]] = [
        cold, warm_refresh, warm_table, warm_table_default, warm_verdict, curves,
    ]  # fmt: skip
    return [Measured(work.__name__, [timed(work) for _ in range(REPEATS)]) for work in works]


def timed(work: Callable[[], None]) -> float:
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def markdown(record: dict) -> str:
    says = {
        "cold": "cold index (target 30 s)",
        "warm_refresh": "warm refresh",
        "warm_table": "warm refresh + table of one metric (target 0.3 s)",
        "warm_table_default": "warm refresh + table of every directed metric",
        "warm_verdict": "warm refresh + contract + verdict",
        "curves": "all thinned curves of one metric",
    }
    lines = ["| what | median of 5 |", "| --- | --- |"]
    lines += [f"| {says[k]} | {v['median_s']:.3f} s |" for k, v in record["results"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
