"""Freezing: commit, data and criteria are locked before the runs that judge them.

A frozen study names the digest of its file and of the committed tree. Runs get the phase "frozen"
only while both still match. A freeze also names the runs that were there already: they never
support a claim of a study file that this freeze locked first, so what was changed after its runs
cannot pass for frozen, whatever the clocks say.
A change of anything in the file that decides (seeds, arms, grid, metrics, claims, …) ends what a
freeze locked, for every claim: otherwise a seed cut afterwards would choose the verdict.
The A/A check compares the baseline with itself: seeds of its pilot runs are dealt at random to
all arms, and the criterion is judged. A criterion that then passes often cannot say no.
"""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from assay.core.config import digest
from assay.core.errors import StudyError
from assay.core.evidence import Selection
from assay.core.ledger import Event, last_freeze, record
from assay.core.plan import PlannedRun
from assay.core.resampling import LARGEST_PASS_RATE, SelfComparison, compare_with_itself, power_of
from assay.core.settings import Settings
from assay.core.study import Claim, Study
from assay.core.vcs import code_state


def freeze(
    study: Study, selection: Selection, settings: Settings, events: Sequence[Event]
) -> tuple[Event, list[SelfComparison]]:
    """Lock a study; returns the event and the A/A checks.

    Raises:
        StudyError: No clean commit, no claims, nothing changed since the last freeze, or a
            criterion that passes too often on the baseline itself. Nothing is recorded.
    """
    where = study.file
    if not study.claims:
        raise StudyError(
            f"{where}: has no claims, so there is nothing to freeze. Add [claims.NAME]."
        )
    code = code_state(settings.root, settings.environment)
    if code["commit"] is None or code["dirty"]:
        state = code["reason"] or "the project has uncommitted changes (`git status` lists them)"
        raise StudyError(f"{where}: freezing needs a clean commit, but {state}. Commit first.")
    before = last_freeze(events, study.id)
    data = data_sha256(study, selection.planned, settings.data_dir)
    if before is not None and is_current(before, study, code, data):
        raise StudyError(
            f"{where}: is frozen as version {before.body['version']} already, with this file and "
            "this code. Nothing was recorded."
        )
    checks = compare_with_itself(study, selection)
    for check in checks:
        if check.deals and check.rate > LARGEST_PASS_RATE:
            raise StudyError(
                f"{where} [claims.{check.claim}]: the criterion passes {check.passes} of "
                f"{check.deals} times when the baseline is compared with itself (A/A check; at most "
                f"{LARGEST_PASS_RATE:.0%} is allowed): it cannot say no. Compare the arms with an "
                "interval, for example diff(…) > 0, instead of a bare threshold."
            )
    everything = (*selection.counting.values(), *(run for run, _ in selection.invalid),
                  *selection.superseded, *selection.stale)  # fmt: skip
    body = {
        "version": 1 + (int(before.body["version"]) if before else 0),
        "study_digest": study.digest,
        "commit": code["commit"],
        "tree_sha256": code["tree_sha256"],
        "data_sha256": data,
        "criteria": {name: claim.criterion for name, claim in study.claims.items()},
        "locks": {name: _lock(claim) for name, claim in study.claims.items()},
        "self_comparison": {c.claim: [c.passes, c.deals] for c in checks},
        "power": {p.claim: asdict(p) for p in power_of(study, selection)},
        "file": study.path.read_text("utf-8"),
        "runs_before": sorted(run.id for run in everything),
    }
    follows = [before.digest] if before else []
    return record(settings.ledger_dir, "freeze", study.id, body, follows=follows), checks


def changes(event: Event, events: Sequence[Event]) -> list[str]:
    """What a freeze changed in the study's file, as lines of a unified diff without context.

    Empty for a first version, and where an older version kept no text.
    """
    before = [e for e in events if e.digest in event.follows]
    if not before or "file" not in before[0].body or "file" not in event.body:
        return []
    old, new = (str(e.body["file"]).splitlines() for e in (before[0], event))
    lines = difflib.unified_diff(old, new, lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def unlocked(
    claim: Claim, study: Study, selection: Selection, events: Sequence[Event]
) -> list[str]:
    """Why a claim of phase frozen and its study were not stated before its runs; empty if so."""
    if claim.phase != "frozen":
        return []
    runs = [run for run in selection.counting.values() if run.phase == "frozen"]
    freezes = sorted(
        (e for e in events if e.kind == "freeze" and e.study == study.id),
        key=lambda e: (int(e.body["version"]), e.digest),
        reverse=True,
    )
    if not freezes:
        found = f"not frozen: the ledger has no freeze of it, but {len(runs)} of its runs say so"
        return [f"{found}. Restore ledger/ from git, or `assay freeze`"] if runs else []
    last = freezes[0].body
    if last["study_digest"] != study.digest:
        same = last.get("locks", {}).get(claim.name) == _lock(claim)
        return [
            f"not frozen: the {'study file' if same else 'claim'} changed since version "
            f"{last['version']}; undo that, or `assay freeze` and `assay run --again`"
        ]
    # Of the whole file: with a seed, an arm or another claim the verdict changes too.
    locking = itertools.takewhile(lambda e: e.body["study_digest"] == study.digest, freezes)
    *_, first = locking
    known = set(first.body.get("runs_before", ()))
    seen = [run.id for run in runs if run.id in known]
    if seen:
        return [
            f"not frozen: {len(seen)} of its runs were there before the study was frozen as it is "
            f"now (version {first.body['version']}), such as {seen[0]}. `assay run --again` makes "
            "new ones"
        ]
    return []


def _lock(claim: Claim) -> str:
    """Digest of all that decides a claim's verdict; its sentence included."""
    return digest(asdict(claim))


def is_current(event: Event, study: Study, code: Mapping[str, Any], data: str) -> bool:
    """Whether a freeze still matches the study's file, its data and the code as it lies here."""
    return (
        event.body["study_digest"] == study.digest
        and event.body["tree_sha256"] == code["tree_sha256"]
        and not code["dirty"]
        and event.body["data_sha256"] == data
    )


def data_sha256(study: Study, planned: Sequence[PlannedRun], data_dir: Path | None) -> str:
    """Digest of the fingerprints of all data that the planned runs of an engine will read.

    What a command reads the lab does not know; it is compared between arms as far as the command
    line names it.
    """
    if study.task is None:
        return digest([])
    fingerprint = study.task.fingerprint
    return digest(
        [[run.identity, fingerprint(run.typed_config, run.seeds, data_dir)] for run in planned]
    )


def phase_of(
    study: Study, planned: Sequence[PlannedRun], settings: Settings, events: Sequence[Event]
) -> tuple[str, str]:
    """The phase that a fresh run of a study has now, and a sentence that says why."""
    event = last_freeze(events, study.id)
    if event is None:
        return study.table.phase, f"phase {study.table.phase}: the study is not frozen"
    version = event.body["version"]
    code = code_state(settings.root, settings.environment)
    if is_current(event, study, code, data_sha256(study, planned, settings.data_dir)):
        return "frozen", f"phase frozen: version {version}, commit {event.body['commit'][:9]}"
    what = "data changed"
    if event.body["study_digest"] != study.digest:
        what = "study file changed"
    elif code["dirty"]:
        what = "project has uncommitted changes"
    elif event.body["tree_sha256"] != code["tree_sha256"]:
        what = "code changed"
    return study.table.phase, (
        f"phase {study.table.phase}: the {what} since version {version} was frozen; undo that, or "
        "commit, and `assay freeze` makes a new version"
    )
