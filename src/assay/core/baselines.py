"""Named baselines with versions: what later results are compared with, across studies.

A baseline is an arm of a study as it stood when it was set: every value of every seed, and the runs
that they came from. Setting it anew makes the next version; older ones stay, so that a delta says
which version it is to. A baseline whose runs were invalidated since is told as such.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from assay.core.config import unknown_key
from assay.core.definition import NAME
from assay.core.errors import StudyError
from assay.core.evidence import Selection, StudyEvidence
from assay.core.ledger import Event, invalidations, record
from assay.core.plan import cell_label, cells
from assay.core.settings import Settings
from assay.core.study import Study


def set_baseline(
    name: str,
    study: Study,
    arm: str,
    selection: Selection,
    settings: Settings,
    events: Sequence[Event],
    because: str,
) -> Event:
    """Record an arm as the next version of a baseline.

    Raises:
        StudyError: No such arm, no runs of it, a bad name, or no reason.
    """
    if not NAME.fullmatch(name) or not because.strip():
        raise StudyError(
            f"A baseline needs a name of letters, digits, '.', '_' or '-' and a reason; got "
            f"{name!r}, {because!r}."
        )
    if arm not in study.arms:
        raise StudyError(f"{study.file}: {unknown_key(arm, list(study.arms), what='arm')}")
    evidence = StudyEvidence(study, selection)
    values = {
        cell_label(cell): {
            metric: {s: v for s, v in evidence.values(metric, arm, cell).items() if v is not None}
            for metric in sorted(evidence.metrics)
        }
        for cell in cells(study.grid)
    }
    kept = {
        label: {metric: seeds for metric, seeds in metrics.items() if seeds}
        for label, metrics in values.items()
    }
    runs = sorted(run.id for run in selection.counting.values() if run.arm == arm)
    if not any(kept.values()):
        raise StudyError(
            f"{study.file}: a baseline needs values, and arm '{arm}' has none that count. `assay "
            "run` makes them; `assay table` says what is out of evidence."
        )
    before = versions(name, events)
    body = {"name": name, "version": len(before) + 1, "study": study.id, "arm": arm,
            "because": because, "runs_used": runs, "values": kept}  # fmt: skip
    follows = [before[-1].digest] if before else []
    return record(settings.ledger_dir, "baseline", study.id, body, follows=follows)


def versions(name: str, events: Sequence[Event]) -> list[Event]:
    """All versions of a baseline, the first one first."""
    found = [e for e in events if e.kind == "baseline" and e.body["name"] == name]
    return sorted(found, key=lambda e: (int(e.body["version"]), e.digest))


def find_baseline(name: str, events: Sequence[Event]) -> Event:
    """A baseline by `NAME`, the newest version, or `NAME@VERSION`.

    Raises:
        StudyError: There is none; told with those that there are.
    """
    plain, _, version = name.partition("@")
    found = versions(plain, events)
    chosen = [e for e in found if not version or str(e.body["version"]) == version]
    if not chosen:
        known = sorted({f"{e.body['name']}@{e.body['version']}" for e in events
                        if e.kind == "baseline"})  # fmt: skip
        raise StudyError(
            f"There is no baseline '{name}'. Baselines: {', '.join(known) or 'none'}; `assay "
            'baseline NAME STUDY ARM --because "…"` sets one.'
        )
    return chosen[-1]


def label_of(event: Event) -> str:
    """`NAME@VERSION`."""
    return f"{event.body['name']}@{event.body['version']}"


def values_of(event: Event, metric: str, label: str) -> Mapping[str, float]:
    """Seed → value of a metric in a cell; where the baseline has one cell, in that one."""
    stored: Mapping[str, Mapping[str, Any]] = event.body["values"]
    one = next(iter(stored)) if len(stored) == 1 else label
    return {s: float(v) for s, v in stored.get(one, {}).get(metric, {}).items()}


def struck_runs(event: Event, events: Sequence[Event]) -> list[str]:
    """Runs of a baseline that were invalidated since."""
    struck = invalidations(events)
    gone = [run for run in event.body["runs_used"] if run in struck]
    return list(event.body["runs_used"]) if event.body["study"] in struck and not gone else gone
