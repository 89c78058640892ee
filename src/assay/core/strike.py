"""What an invalidation strikes: a run, a study, one version of an analysis, or an artifact."""

from dataclasses import dataclass

from assay.core.errors import StoreError
from assay.core.index import Index
from assay.core.read import IndexedRun

ANALYSIS, ARTIFACT = "analysis:", "artifact:"
SHORTEST_SHA = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """What is struck.

    Attributes:
        name: The target in full, as the ledger knows it.
        runs: Ids of the runs that are no evidence any more.
        studies: The studies whose verdicts may change, that of the target first.
    """

    name: str
    runs: tuple[str, ...]
    studies: tuple[str, ...]


def strike(target: str, index: Index) -> Struck:
    """Find what a target is, and the runs that rest on it.

    Values of an analysis, and of any analysis that read an artifact, are struck by name when
    evidence is selected. Runs are struck with an artifact if it is in their provenance: they read it
    as data. The run that made it is not: what it measured does not rest on it.

    Raises:
        StoreError: There is no such thing, or several.
    """
    studies = {name for name, _ in index.studies()}
    if target.startswith(ANALYSIS):
        return _analysis(target, index)
    if target.startswith(ARTIFACT):
        return _artifact(target.removeprefix(ARTIFACT), index)
    if target in studies:
        return Struck(
            name=target, runs=tuple(run.id for run in index.runs(target)), studies=(target,)
        )
    run = index.find(target)
    return Struck(name=run.id, runs=(run.id,), studies=(run.study,))


def _analysis(target: str, index: Index) -> Struck:
    study, _, key = target.removeprefix(ANALYSIS).partition("/")
    known = sorted({name for run in index.runs(study) for name in run.analyses})
    if key not in known:
        raise StoreError(
            f"There is no result of {target!r}. Name it as analysis:STUDY/NAME@VERSION; study "
            f"'{study}' has {', '.join(known) or 'none'}."
        )
    return Struck(name=target, runs=(), studies=(study,))


def _artifact(sha: str, index: Index) -> Struck:
    runs = index.runs()
    known = {full: run for run in runs for full in run.artifacts.values()}
    found = [full for full in known if full.startswith(sha.lower())]
    if len(sha) < SHORTEST_SHA or len(found) != 1:
        raise StoreError(
            f"{len(found)} artifacts begin with {sha!r}, and exactly one must. Give at least "
            f"{SHORTEST_SHA} letters of its sha256; `assay show RUN` lists them."
        )
    maker: IndexedRun = known[found[0]]
    readers: list[IndexedRun] = []
    facts = {study: index.study_facts(study) for study in {run.study for run in runs}}
    for run in runs:
        values = facts[run.study].get(run.id, {}).values()
        if found[0] in values and found[0] not in run.artifacts.values():
            readers.append(run)
    analysed = [
        run.study for run in runs if any(found[0] in i.values() for i in run.analyses.values())
    ]
    studies = dict.fromkeys([maker.study, *analysed, *(run.study for run in readers)])
    return Struck(
        name=f"{ARTIFACT}{found[0]}",
        runs=tuple(run.id for run in readers),
        studies=tuple(studies),
    )
