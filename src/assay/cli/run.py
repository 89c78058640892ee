"""`assay run`: a study's missing runs, or any program as one run."""

import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from assay.cli.common import ledger, open_study
from assay.cli.display import Display
from assay.core.config import digest
from assay.core.criterion import check
from assay.core.errors import AssayError, LaunchError
from assay.core.freeze import phase_of
from assay.core.launch.job import Job, JobRun
from assay.core.ledger import invalidations
from assay.core.plan import expand
from assay.core.run import create_run, new_record, read_run
from assay.core.runner import Execution, Runner
from assay.core.settings import Settings
from assay.core.study import Collect, Study
from assay.core.survey import Survey, survey
from assay.core.worker import Stop, compute

NOTHING = Collect()


def run(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    dry_run: bool = False,
    again: bool = False,
    jobs: int | None = None,
    device: str = "cpu",
    name: str | None = None,
    collect: Annotated[Collect, Parameter(name="*")] = NOTHING,
) -> None:
    """Run what is missing of a study; or run any program: assay run -- python train.py --lr 3e-4.

    Args:
        command: A study file or id; or, after --, a program and its arguments.
        dry_run: Print the plan and stop: runs, cohorts, what is done already, cost where known.
        again: Compute every run once more; the newer one counts, the older one stays.
        jobs: Cohorts at a time; by default one a CPU core.
        device: Where engines compute.
        name: For a program: the arm it is filed under, by default its name.
        collect: For a program: where it leaves its numbers.
    """
    settings = Settings.from_environment()
    if not command:
        raise LaunchError(
            "Say what to run: a study (assay run studies/addition/d8.toml), or a program after -- "
            "(assay run -- python train.py)."
        )
    if len(command) == 1 and (command[0].endswith(".toml") or not shutil.which(command[0])):
        study = open_study(command[0], settings)
        run_study(study, settings, dry_run=dry_run, again=again, jobs=jobs, device=device)
        return
    run_command(command, settings, name=name, collect=collect)


def run_study(
    study: Study, settings: Settings, *, dry_run: bool, again: bool, jobs: int | None, device: str
) -> None:
    """Plan, show, execute, and tell how it went."""
    for claim in study.claims.values():
        check(claim.criterion, arms=list(study.arms), grid=study.grid,
              metrics=frozenset(study.metrics) or None)  # fmt: skip
    events = ledger(settings)
    invalid = frozenset(invalidations(events))
    phase, why = phase_of(study, settings, events)
    found = survey(expand(study), settings.runs_dir, phase=phase, invalid=invalid, again=again)
    console = Console()
    show_plan(study, found, why, console)
    if dry_run or not found.pending:
        return
    with Display(len(found.pending), console) as display:
        runner = Runner(
            study=study,
            settings=settings,
            observer=display,
            phase=phase,
            jobs=jobs or os.cpu_count() or 1,
            device=device,
            again=again,
            invalid=invalid,
        )
        result = runner.execute(found.cohorts())
    sys.exit(_tell(result, study, console))


def show_plan(study: Study, found: Survey, why: str, console: Console) -> None:
    """Print what there is to do, and what it will cost where earlier runs tell."""
    planned = len(found.done) + len(found.pending)
    cohorts = found.cohorts()
    console.print(f"[bold]{study.id}[/bold]: {study.table.question}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("arm", "cells", "runs", "done", "to do", "goes on from"):
        table.add_column(column)
    for arm in study.arms:
        done = [s for p, s in found.done if p.arm == arm]
        open_runs = [p for p in found.pending if p.planned.arm == arm]
        steps = sorted({p.start_step for p in open_runs if p.start_step is not None})
        cells = {p.planned.cell_label for p in open_runs} | {s.record.cell_label for s in done}
        table.add_row(arm, str(len(cells)), str(len(done) + len(open_runs)), str(len(done)),
                      str(len(open_runs)), ", ".join(f"step {s:,}" for s in steps))  # fmt: skip
    console.print(table)
    durations = [s.end.duration_s for _, s in found.done if s.end]
    cost = ""
    if durations and found.pending:
        cost = (
            f"; a done run's process took {sorted(durations)[len(durations) // 2]:,.0f} s (median)"
        )
    console.print(
        f"{planned} runs, {len(found.done)} done, {len(found.pending)} to do in {len(cohorts)} "
        f"cohort(s); {why}{cost}.",
        highlight=False,
        soft_wrap=True,
    )
    for problem in found.broken:
        console.print(f"not readable: {problem}", style="red", highlight=False)


def _tell(result: Execution, study: Study, console: Console) -> int:
    failed = [s for s in result.finished if s.status == "failed"]
    done = sum(s.status == "completed" for s in result.finished)
    console.print(f"{done} run(s) completed, {len(failed)} failed.", highlight=False)
    for state in failed:
        console.print(f"failed: assay show {state.record.id}", highlight=False)
    if result.elsewhere:
        console.print(
            f"{len(result.elsewhere)} run(s) were taken by another `assay run`.", highlight=False
        )
    if result.interrupted:
        console.print(f"Interrupted. `assay run {study.path.name}` goes on from the checkpoints.")
        return 130
    unfinished = [s for s in result.finished if s.status in ("open", "interrupted")]
    if unfinished:
        console.print(f"{len(unfinished)} run(s) were stopped; `assay run` goes on with them.")
    return 2 if failed or unfinished else 0


def run_command(
    command: tuple[str, ...], settings: Settings, *, name: str | None, collect: Collect
) -> None:
    """Run a program once in the study "scratch", with its caller's environment."""
    arm = name or Path(command[-1] if len(command) == 1 else _script(command)).stem
    record = new_record(
        study="scratch",
        arm=arm,
        identity=digest({"cmd": list(command), "at": time.time_ns(), "pid": os.getpid()}),
        cmd=list(command),
    )
    folder = create_run(settings.runs_dir, record)
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    job = Job(
        root=str(settings.root),
        runs=[JobRun(folder=str(folder), attempt=1)],
        cache_dir=str(settings.cache_dir),
        collect=asdict(collect),
        out_dir=None,
    )
    try:
        (status,) = compute(job, settings, None, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    state = read_run(folder)
    sys.stderr.write(f"assay: {status}; run {record.id} in {folder.relative_to(settings.root)}\n")
    if status == "failed":
        error = state.end.error.splitlines()[0] if state.end and state.end.error else ""
        raise AssayError(f"{error} The run is kept: assay show {record.id}.")
    if status == "interrupted":
        sys.exit(130)


def _script(command: tuple[str, ...]) -> str:
    """The word that names a command: its first script, else its program."""
    return next((w for w in command[1:] if Path(w).is_file()), command[0])
