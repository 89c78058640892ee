"""Weights & Biases: a folder of offline runs, one a run, which `wandb sync` sends where its owner wants.

Nothing is sent from here. A step of W&B is one line with the values of all metrics at that step, so
series are joined by their steps; where a metric has two values at one step, the later stands in a line
of its own with the same step of ours, `assay_step`, which is every line's.
"""

import importlib
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assay.core.errors import ConfigError
from assay.core.export.gather import SUMMARY, ExportedRun
from assay.core.export.whole import whole
from assay.core.settings import variables

STEP = "assay_step"
"""The step as it was logged; W&B's own must rise from line to line."""
FOLDER = "wandb"
LONGEST_NAME = 128
_QUIET = {
    "mode": "offline", "console": "off", "silent": True, "host": "", "disable_git": True,
    "disable_code": True, "save_code": False, "x_disable_stats": True, "x_disable_meta": True,
    "x_disable_machine_info": True, "x_save_requirements": False,
}  # fmt: skip


def write_wandb(runs: Iterable[ExportedRun], out: Path) -> None:
    """Write runs as a folder for `wandb sync OUT/wandb/offline-run-*`.

    Raises:
        StoreError: `out` exists or cannot be written.
        ConfigError: The library wandb is not installed.
    """
    with whole(out) as temporary:
        temporary.mkdir()
        with _library() as library:
            for run in runs:
                _write_run(library, run, temporary)
        _strip(temporary / FOLDER)


def _strip(folder: Path) -> None:
    """Remove what the library writes about this machine and not about the runs."""
    (folder / "latest-run").unlink(missing_ok=True)
    for log in folder.glob("*.log"):
        log.unlink()
    for part in ("logs", "tmp"):
        for path in folder.glob(f"*/{part}"):
            shutil.rmtree(path)


@contextmanager
def _library() -> Iterator[Any]:
    """The library, with reports to its makers off; its service ends with the export."""
    with variables(WANDB_ERROR_REPORTING="false"):
        try:
            library = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                f"--to wandb needs the library wandb, which cannot be imported ({error}). Install it "
                "with: pip install 'assay[wandb]'"
            ) from error
        try:
            yield library
        finally:
            library.teardown()


def _write_run(library: Any, run: ExportedRun, out: Path) -> None:
    about = {f"assay.{key}": value for key, value in run.about.items() if value is not None}
    invalid = f"Invalidated: {run.about['because']}" if run.about["invalidated"] else None
    standing = run.about["standing"]
    written = library.init(
        project=_fit(re.sub(r"[/\\#?%:]", "_", str(run.about["study"]))),
        id=str(run.about["run"]),
        name=_fit(run.name),
        group=_fit(str(run.about["arm"])),
        job_type=_fit(str(run.about["task"])) if run.about["task"] is not None else None,
        tags=None if standing is None else [str(standing)],
        notes=invalid,
        config={**run.params, **about},
        dir=str(out),
        settings=library.Settings(**_QUIET),
        reinit="create_new",
    )
    # Without it W&B draws every metric against the number of the line.
    written.define_metric("*", step_metric=STEP)
    for step, time, values in _lines(run):
        written.log({**values, STEP: step, "_timestamp": time})
    # As a line, since W&B's own way to set a summary makes null of NaN.
    final = {SUMMARY + name: float(value) for name, value in run.summary.items()}
    if final:
        written.log({**final, STEP: run.last_step, "_timestamp": run.ended_s or run.created_s})
    written.finish(exit_code=0 if run.about["status"] == "completed" else 1)


def _lines(run: ExportedRun) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Step, time and values of each line, by rising steps."""
    lines: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    times: dict[tuple[int, int], float] = {}
    for name, series in run.series.items():
        seen: dict[int, int] = defaultdict(int)
        for step, value, time in zip(*(column.tolist() for column in series), strict=True):
            at = step, seen[step]
            seen[step] += 1
            lines[at][name] = value
            times[at] = max(time, times.get(at, time))
    for at in sorted(lines):
        yield at[0], times[at], lines[at]


def _fit(name: str) -> str:
    """A name that W&B takes; the whole one stands in the configuration, under `assay.…`."""
    return name[:LONGEST_NAME]
