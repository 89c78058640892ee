"""What logging 10 scalars a step costs: Assay beside trackio, W&B, MLflow, Aim and TensorBoard.

    python benchmarks/logging_peers.py --out benchmarks/records/DATE_logging_MACHINE

Each peer lives in an environment of its own, made once with the pinned version and kept outside
the repository. Each measurement is a process of its own: a warm-up of 100 steps, then a timed
loop, then the call that makes everything durable. Repeats go round the tools, so that a slow
minute of the machine touches all of them. Asynchronous tools hide cost in the background, hence
three numbers: time in the caller, time to close, and scalars a second until durable.

This file is also the child: it runs under each environment's own Python and imports nothing but
the standard library and the tool.
"""

import argparse
import importlib
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

NUM_SCALARS = 10
WARM_UP = 100
REPEATS = 5
Log = Callable[[int, dict[str, float]], object]
Start = Callable[[Path], tuple[Log, Callable[[], object]]]

# Tool → (pinned distribution or None for the interpreter that runs this, steps a measurement).
TOOLS: dict[str, tuple[str | None, int]] = {
    "raw JSONL": (None, 100_000),
    "assay": (None, 100_000),
    "trackio": ("trackio==0.43.0", 5_000),
    "tensorboard": ("tensorboard==2.21.0", 2_000),
    "torch SummaryWriter": (None, 5_000),
    "wandb offline": ("wandb==0.31.0", 5_000),
    "aim": ("aim==3.29.1", 1_000),
    "mlflow sqlite async": ("mlflow==3.17.2", 2_000),
    "mlflow sqlite sync": ("mlflow==3.17.2", 300),
}


def start_jsonl(folder: Path) -> tuple[Log, Callable[[], object]]:
    orjson = importlib.import_module("orjson")
    fd = os.open(folder / "rows.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def log(step: int, values: dict[str, float]) -> object:
        row = {"step": step, "time": time.time(), "values": values}
        return os.write(fd, orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    return log, lambda: os.fsync(fd)


def start_assay(folder: Path) -> tuple[Log, Callable[[], object]]:
    run = importlib.import_module("assay").init("bench")
    return lambda step, values: run.log(values, step=step), run.finish


def start_trackio(folder: Path) -> tuple[Log, Callable[[], object]]:
    trackio = importlib.import_module("trackio")
    trackio.init(project="bench")
    return lambda step, values: trackio.log(values, step=step), trackio.finish


def start_tensorboard(folder: Path) -> tuple[Log, Callable[[], object]]:
    writer = importlib.import_module("tensorboard.summary").Writer(str(folder))

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def start_torch(folder: Path) -> tuple[Log, Callable[[], object]]:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def start_wandb(folder: Path) -> tuple[Log, Callable[[], object]]:
    run = importlib.import_module("wandb").init(project="bench", dir=str(folder), mode="offline")
    return lambda step, values: run.log(values, step=step), run.finish


def start_aim(folder: Path) -> tuple[Log, Callable[[], object]]:
    run = importlib.import_module("aim").Run(repo=str(folder), system_tracking_interval=None)
    return lambda step, values: run.track(values, step=step), run.close


def start_mlflow(folder: Path, *, synchronous: bool) -> tuple[Log, Callable[[], object]]:
    mlflow = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()

    def log(step: int, values: dict[str, float]) -> None:
        mlflow.log_metrics(values, step=step, synchronous=synchronous)

    def close() -> None:
        if not synchronous:
            mlflow.flush_async_logging()
        mlflow.end_run()

    return log, close


STARTS: dict[str, Start] = {
    "raw JSONL": start_jsonl,
    "assay": start_assay,
    "trackio": start_trackio,
    "tensorboard": start_tensorboard,
    "torch SummaryWriter": start_torch,
    "wandb offline": start_wandb,
    "aim": start_aim,
    "mlflow sqlite async": lambda folder: start_mlflow(folder, synchronous=False),
    "mlflow sqlite sync": lambda folder: start_mlflow(folder, synchronous=True),
}


def child(tool: str, folder: Path, steps: int) -> dict[str, float]:
    """One measurement, in this process."""
    before = time.perf_counter()
    log, close = STARTS[tool](folder)
    start_s = time.perf_counter() - before
    names = [f"train/metric{i}" for i in range(NUM_SCALARS)]
    tables = [{name: (i + 1) / (k + 3) for k, name in enumerate(names)} for i in range(1000)]
    source = itertools.cycle(tables)
    for step in range(WARM_UP):
        log(step, next(source))
    times = []
    clock = time.perf_counter_ns
    begin = clock()
    for step in range(WARM_UP, WARM_UP + steps):
        values = next(source)
        t0 = clock()
        log(step, values)
        times.append(clock() - t0)
    looped = clock()
    close()
    closed = clock()
    times.sort()
    return {
        "start_s": start_s,
        "median_us": statistics.median(times) / 1e3,
        "p99_us": times[int(0.99 * len(times))] / 1e3,
        "caller_scalars_per_s": steps * NUM_SCALARS / ((looped - begin) / 1e9),
        "close_s": (closed - looped) / 1e9,
        "durable_scalars_per_s": steps * NUM_SCALARS / ((closed - begin) / 1e9),
    }


def install(envs: Path, spec: str) -> tuple[Path | None, str]:
    """The Python of a peer's environment, made if it is not there; or None and the reason."""
    folder = envs / spec.replace("==", "-")
    python = folder / "bin" / "python"
    name = spec.partition("==")[0]
    if not (python.exists() and imports(python, name)):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", spec], capture_output=True, text=True
        )
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return None, (errors or ["pip failed"])[-1][:200]
        if not imports(python, name):
            return None, f"import {name} fails after installation"
    return python, ""


def imports(python: Path, name: str) -> bool:
    found = f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is None)"
    return subprocess.run([str(python), "-c", found], capture_output=True).returncode == 0


def offline_environment(home: Path) -> dict[str, str]:
    """No account, no telemetry, and a proxy that leads nowhere, should a tool try all the same."""
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ASSAY_ROOT": str(home),
        "TRACKIO_DIR": str(home / "trackio"),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(home),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "AIM_UI_TELEMETRY_ENABLED": "0",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "localhost,127.0.0.1",
    }


def measure(tool: str, python: Path, steps: int) -> dict[str, float]:
    """One measurement in a process of its own, with an empty home."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        command = [str(python), __file__, "--child", tool, "--steps", str(steps), "--dir", name]
        done = subprocess.run(
            command, env=offline_environment(home), cwd=home, capture_output=True, text=True,
            timeout=600,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1][:300])
        result = json.loads(done.stdout.strip().splitlines()[-1])
        size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        result["bytes_per_scalar"] = size / (NUM_SCALARS * (steps + WARM_UP))
        return result


def spread(values: list[float]) -> dict[str, float | list[float]]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "values": values}


def machine() -> dict[str, str | int | float]:
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = found[0].partition(":")[2].strip() if found else model
    return {
        "processor": model,
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def version_of(tool: str, spec: str | None) -> str:
    if spec is not None:
        return spec.partition("==")[2]
    name = {"raw JSONL": "orjson", "torch SummaryWriter": "torch"}.get(tool, tool)
    return (
        f"{name} {importlib.metadata.version(name)}"
        if name != tool
        else importlib.metadata.version(name)
    )


def table(record: dict) -> str:
    """The record as a Markdown table, fastest caller first; peers that failed with the reason."""
    lines = [
        "| tool | version | caller, median µs a step (IQR) | p99 µs | scalars/s in the caller "
        "| scalars/s until durable | close s | bytes a scalar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    done = {tool: r for tool, r in record["tools"].items() if "results" in r}
    for tool, entry in sorted(done.items(), key=lambda e: e[1]["results"]["median_us"]["median"]):
        r = {name: s["median"] for name, s in entry["results"].items()}
        iqr = entry["results"]["median_us"]
        lines.append(
            f"| {tool} | {entry['version']} | {r['median_us']:,.1f} "
            f"({iqr['q1']:,.1f} to {iqr['q3']:,.1f}) | {r['p99_us']:,.1f} "
            f"| {r['caller_scalars_per_s']:,.0f} | {r['durable_scalars_per_s']:,.0f} "
            f"| {r['close_s']:.2f} | {r['bytes_per_scalar']:.0f} |"
        )
    for tool, entry in record["tools"].items():
        if "results" not in entry:
            lines.append(f"| {tool} | {entry['version']} | not measured: {entry['reason']} |||||| ")
    return "\n".join(lines) + "\n"


def run_all(envs: Path, repeats: int, only: list[str]) -> dict:
    record: dict = {
        "what": f"log of {NUM_SCALARS} scalars a step",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "repeats": repeats,
        "warm_up_steps": WARM_UP,
        "tools": {},
    }
    pythons = {}
    for tool in only:
        spec, steps = TOOLS[tool]
        python, reason = (Path(sys.executable), "") if spec is None else install(envs, spec)
        entry = {"version": (spec or "").partition("==")[2], "steps": steps}
        if python is None:
            record["tools"][tool] = {**entry, "reason": reason}
        else:
            pythons[tool] = python
            record["tools"][tool] = {**entry, "version": version_of(tool, spec), "raw": []}
    for repeat in range(repeats):
        for tool, python in list(pythons.items()):
            entry = record["tools"][tool]
            try:
                entry["raw"].append(measure(tool, python, entry["steps"]))
                print(f"{repeat + 1}/{repeats} {tool}: {entry['raw'][-1]['median_us']:.1f} µs")
            except (RuntimeError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
                entry["reason"] = str(error)
                del pythons[tool]
                print(f"{repeat + 1}/{repeats} {tool}: {error}")
    for tool in pythons:
        raw = record["tools"][tool].pop("raw")
        names = raw[0].keys()
        record["tools"][tool]["results"] = {n: spread([r[n] for r in raw]) for n in names}
    record["machine"]["load_at_end"] = round(os.getloadavg()[0], 2)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--envs", type=Path, default=cache / "assay" / "peers")
    parser.add_argument("--out", type=Path, help="folder for record.json and table.md")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--child", choices=list(TOOLS), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.dir, args.steps)))
        return
    record = run_all(args.envs, args.repeats, args.only)
    print(table(record))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        (args.out / "table.md").write_text(table(record))


if __name__ == "__main__":
    main()
