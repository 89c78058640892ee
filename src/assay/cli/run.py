"""`assay run`: a study's missing runs, or any program as one run."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.cli import PROGRAM
from assay.cli.common import Output, ledger, open_index, open_study
from assay.cli.display import Display, duration
from assay.core.collect import compile_pattern
from assay.core.config import canonical, digest
from assay.core.environment import clean_environment
from assay.core.errors import AssayError, LaunchError, StudyError
from assay.core.freeze import phase_of
from assay.core.launch.job import Job, JobRun
from assay.core.ledger import invalidations
from assay.core.plan import PlannedRun, expand
from assay.core.provenance import find_program
from assay.core.run import RunState, create_run, new_record, read_run
from assay.core.runner import STOP_SIGNALS, Execution, Runner
from assay.core.settings import Settings
from assay.core.study import Collect, Study
from assay.core.survey import Pending, Survey, survey
from assay.core.worker import Stop, compute

NOTHING = Collect()


def run(
    *command: str,
    dry_run: bool = False,
    again: bool = False,
    jobs: int | None = None,
    device: str = "cpu",
    scale: str | None = None,
    name: str | None = None,
    collect: Annotated[Collect, Parameter(name="*")] = NOTHING,
) -> None:
    """Run what is missing of a study; or run any program: assay run -- python train.py --lr 3e-4.

    Unfinished runs go on from their last checkpoint, failed ones are tried again. Ctrl-C saves
    checkpoints and stops; a second one stops at once. Several `assay run` of one study share its
    runs. Exit code: 0 done, 2 a run failed or was stopped, 130 interrupted.

    Args:
        command: A study file or id; or, after --, a program and its arguments.
        dry_run: Print the plan and stop: runs, cohorts, what is done already, cost where known.
        again: Compute every run once more; the newer one counts, the older one stays.
        jobs: Cohorts at a time; by default one a CPU core.
        device: Where engines compute.
        scale: Run the study at this scale of its file, [scales.NAME]: a study of its own, ID.NAME.
        name: For a program: the arm it is filed under, by default its name.
        collect: For a program: where it leaves its numbers.
    """
    settings = Settings.from_environment()
    is_program = command[:1] == (PROGRAM,)
    _check_options(is_program=is_program, for_study={"dry-run": dry_run, "again": again,
                   "jobs": jobs is not None, "device": device != "cpu",
                   "scale": scale is not None},
                   for_program={"name": name is not None, "csv": collect.csv is not None,
                   "summary": collect.summary is not None, "stdout": collect.stdout is not None,
                   "tensorboard": collect.tensorboard is not None, "rename": collect.rename})  # fmt: skip
    if is_program and len(command) > 1:
        run_command(command[1:], settings, name=name, collect=collect)
    elif len(command) == 1 and not is_program:
        if jobs is not None and jobs < 1:
            raise LaunchError(f"--jobs must be at least 1; got {jobs}. One a CPU core is usual.")
        study = open_study(command[0], settings, scale)
        given = f"{command[0]} --scale {scale}" if scale else command[0]
        run_study(
            study, settings, given=given, dry_run=dry_run, again=again, jobs=jobs, device=device
        )
    else:
        given = f"; got {' '.join(command)!r}" if command and not is_program else ""
        raise LaunchError(
            "Say what to run: one study (assay run studies/addition/d8.toml), or a program after "
            f"-- (assay run -- python train.py){given}."
        )


def _check_options(
    *, is_program: bool, for_study: Mapping[str, object], for_program: Mapping[str, object]
) -> None:
    """An option that would be without effect is a mistake."""
    for option, value in (for_study if is_program else for_program).items():
        if value:
            given, other = ("a program", "a study") if is_program else ("a study", "a program")
            where = "" if is_program else "; a study says so in its [collect]"
            raise LaunchError(
                f"--{option} is for {other}, and {given} was given{where}. Leave it out."
            )


def run_study(
    study: Study,
    settings: Settings,
    *,
    given: str,
    dry_run: bool,
    again: bool,
    jobs: int | None,
    device: str,
) -> None:
    """Plan, show, execute, and tell how it went; `given` is how the user named the study."""
    if study.collect.stdout is not None:
        compile_pattern(study.collect.stdout)
    planned = expand(study)
    for variables in {tuple(run.env.items()) for run in planned}:
        clean_environment(settings.environment, dict(variables))
    events = ledger(settings)
    invalid = frozenset(invalidations(events))
    phase, why = phase_of(study, planned, settings, events)
    found = survey(planned, settings.runs_dir, phase=phase, invalid=invalid, again=again)
    if found.pending:
        _check(study, planned, settings)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    at_once, threads = _division(study, planned, jobs or cores or 1, cores or 1)
    cohorts = found.cohorts(at_once)
    console = Output()
    show_plan(study, found, cohorts, why, console)
    if dry_run or not found.pending:
        sys.exit(2 if found.failed else 0)
    with Display(len(found.pending), console) as display:
        runner = Runner(
            study=study,
            settings=settings,
            observer=display,
            phase=phase,
            jobs=at_once,
            threads=threads,
            device=device,
            again=again,
            invalid=invalid,
        )
        result = runner.execute(cohorts)
    code = _tell(result, given, console)
    _tell_findings(study, settings, console)
    sys.exit(code)


def _check(study: Study, planned: Sequence[PlannedRun], settings: Settings) -> None:
    """What the engine can tell to be wrong before the first run: once, and not by failing each."""
    if study.task is None:
        return
    different = {canonical(run.config): run.typed_config for run in planned}
    try:
        study.task.check([*different.values()], settings.data_dir)
    except AssayError as error:
        raise StudyError(f"{study.file}: {error}") from error


def _tell_findings(study: Study, settings: Settings, console: Output) -> None:
    """What contract and audits find in the runs that there are now; it changes no exit code."""
    from assay.core.verdict import judge_study

    try:
        with open_index(settings, study.id) as index:
            findings = judge_study(study, index, ledger(settings)).findings
    except AssayError as error:
        console.print(f"not audited: {error}")
        return
    for finding in findings:
        console.print(f"{finding.weight}: {finding.message}")


def _division(
    study: Study, planned: Sequence[PlannedRun], jobs: int, cores: int
) -> tuple[int, int]:
    """How many processes compute at once, and on how many threads each.

    It follows from the whole plan and not from what is left of it: a resumed arm must not differ
    from the others in its threads.
    """
    limit = study.task.max_threads if study.task else None
    num_cohorts = len({run.cohort for run in planned})
    if limit is None:
        at_once = min(jobs, num_cohorts)
        return at_once, max(1, cores // at_once)
    # A cohort cannot use all cores: it is divided among processes.
    return min(jobs, len(planned)), limit


def show_plan(
    study: Study,
    found: Survey,
    cohorts: Sequence[Sequence[Pending]],
    why: str,
    console: Console,
) -> None:
    """Print what there is to do, and what it will cost where earlier runs tell."""
    planned = len(found.done) + len(found.pending)
    console.print(Text.assemble((study.id, "bold"), f": {study.table.question}"))
    if study.at_scale:
        console.print(study.at_scale)
    table = Table(box=None, pad_edge=False)
    for column in ("arm", "cells", "runs", "done", "to do", "goes on from"):
        table.add_column(column)
    for arm in study.arms:
        done = [s for p, s in found.done if p.arm == arm]
        open_runs = [p for p in found.pending if p.planned.arm == arm]
        at = [p.start_step or 0 for p in open_runs]
        steps = sorted(set(at)) if any(at) else []
        cells = {p.planned.cell_label for p in open_runs} | {s.record.cell_label for s in done}
        table.add_row(arm, str(len(cells)), str(len(done) + len(open_runs)), str(len(done)),
                      str(len(open_runs)), ", ".join(f"step {s:,}" for s in steps))  # fmt: skip
    console.print(table)
    shares = sorted(s.spent.get("process_s", 0.0) for _, s in found.done)
    cost = ""
    if shares and found.pending:
        each = shares[len(shares) // 2]
        cost = f"; about {duration(each * len(found.pending))} of process time, from what is done"
    console.print(
        f"{planned} runs, {len(found.done)} done, {len(found.pending)} to do in {len(cohorts)} "
        f"cohort(s); {why}{cost}."
    )
    if found.failed:
        console.print(
            f"{len(found.failed)} frozen run(s) failed and count as failed; only --again makes "
            "others."
        )
    for problem in found.broken:
        console.print(f"not readable: {problem}", style="red")


def _tell(result: Execution, name: str, console: Console) -> int:
    failed = [s for s in result.finished if s.status == "failed"]
    done = sum(s.status == "completed" for s in result.finished)
    console.print(f"{done} run(s) completed, {len(failed)} failed.")
    for state in failed:
        console.print(f"failed: assay show {state.record.id}")
    if result.elsewhere:
        console.print(f"{len(result.elsewhere)} run(s) were taken by another `assay run`.")
    if result.interrupted:
        console.print(f"Interrupted. `assay run {name}` goes on from the checkpoints.")
        return 130
    unfinished = [s for s in result.finished if s.status in ("open", "interrupted")]
    if unfinished:
        console.print(
            f"{len(unfinished)} run(s) were stopped; `assay run {name}` goes on with them."
        )
    return 2 if failed or unfinished else 0


def run_command(
    command: tuple[str, ...], settings: Settings, *, name: str | None, collect: Collect
) -> None:
    """Run a program once in the study "scratch", with its caller's environment."""
    if collect.stdout is not None:
        compile_pattern(collect.stdout)
    find_program(command[0], settings.environment, Path.cwd())
    arm = name or Path(_script(command)).stem
    record = new_record(
        study="scratch",
        arm=arm,
        identity=digest({"cmd": list(command), "at": time.time_ns(), "pid": os.getpid()}),
        cmd=list(command),
    )
    folder = create_run(settings.runs_dir, record)
    stop = Stop()
    heeded = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop.ask) for number in heeded}
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
        raise AssayError(f"{_reason(state)} The run is kept: assay show {record.id}.")
    if status == "interrupted":
        sys.exit(130)


def _reason(state: RunState) -> str:
    """The first line of an error of ours or about a program; of a traceback, the last."""
    lines = (state.end.error if state.end and state.end.error else "").strip().splitlines()
    return lines[-1 if lines[0].startswith("Traceback") else 0] if lines else ""


def _script(command: tuple[str, ...]) -> str:
    """The word that names a command: its first script, else its program."""
    return next((w for w in command[1:] if Path(w).is_file()), command[0])
