"""From a study and its runs to verdicts: contract first, then claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assay.core.audit import audit
from assay.core.audited import Audited
from assay.core.claims import Judgement, judge
from assay.core.contract import Contract, Realised, check
from assay.core.criterion import parse
from assay.core.evidence import Selection, by_phase, select
from assay.core.findings import Finding
from assay.core.freeze import unlocked
from assay.core.grammar import Measure
from assay.core.index import Index
from assay.core.ledger import Event
from assay.core.study import PHASES, Claim, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyVerdict:
    """What a study comes to.

    Attributes:
        study: The study.
        selection: The runs that count.
        contract: What the arms differ in, over runs of all phases.
        judgements: One a claim, in the order of the file.
        audits: What the runs themselves show to be wrong, of all phases.
    """

    study: Study
    selection: Selection
    contract: Contract
    judgements: tuple[Judgement, ...]
    audits: tuple[Finding, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of the contract and of the audits."""
        return (*self.contract.findings, *self.audits)

    @property
    def headline(self) -> str:
        """The verdicts in few words, and their scale, for a heading: "PASS 2, INCONCLUSIVE 1"."""
        at = f" ({self.study.at_scale})" if self.study.at_scale else ""
        if not self.judgements:
            return f"no claims{at}"
        order = ("PASS", "FAIL", "INCONCLUSIVE", "INVALID", "UNTESTED")
        counts = {v: sum(j.verdict == v for j in self.judgements) for v in order}
        return ", ".join(f"{v} {n}" for v, n in counts.items() if n) + at

    @property
    def exit_code(self) -> int:
        """0 all PASS; 1 a FAIL; 4 an INVALID (confounded, no-op); 5 undecided or untested."""
        verdicts = {j.verdict for j in self.judgements}
        if "FAIL" in verdicts:
            return 1
        if "INVALID" in verdicts:
            return 4
        return 5 if verdicts & {"INCONCLUSIVE", "UNTESTED"} else 0


def judge_study(study: Study, index: Index, events: Sequence[Event]) -> StudyVerdict:
    """Check the contract and judge every claim of a study.

    A claim is blocked by what is wrong between the runs of its own phase: pilot runs of older
    code do not confound a frozen claim.

    Raises:
        CriterionError: A criterion that does not fit the study.
    """
    with index.snapshot():
        selection = select(study, index, events)
        facts = index.study_facts(study.id)
        lowest = min((PHASES.index(run.phase) for run in selection.counting.values()), default=0)
        seen = Audited(study, selection, facts, index)
        contract, audits = check_contract(study, selection, facts), audit(seen)
        findings: dict[str, Sequence[Finding]] = {}
        for phase in {claim.phase for claim in study.claims.values()}:
            # Mostly no run is below the claim's phase, and the findings are the same.
            findings[phase] = (*contract.findings, *audits)
            if PHASES.index(phase) > lowest:
                own = check_contract(study, selection, facts, phase)
                findings[phase] = (*own.findings, *audit(replace(seen, phase=phase)))
    blocked = {
        claim.name: [
            *_blocking(claim, study, findings[claim.phase]),
            *unlocked(claim, study, selection, events),
        ]
        for claim in study.claims.values()
    }
    judgements = judge(list(study.claims.values()), by_phase(study, selection), blocked=blocked)
    return StudyVerdict(
        study=study,
        selection=selection,
        contract=contract,
        judgements=tuple(judgements),
        audits=tuple(audits),
    )


def check_contract(
    study: Study,
    selection: Selection,
    facts: Mapping[str, Mapping[str, Any]],
    phase: str = PHASES[0],
) -> Contract:
    """Compare what ran in the arms.

    Args:
        study: The study.
        selection: Its runs, of which the completed ones are compared.
        facts: Run id → realised provenance (`Index.study_facts`).
        phase: The lowest phase of the runs to compare.
    """
    lowest = PHASES.index(phase)
    realised = [
        Realised(
            run_id=run.id,
            arm=arm,
            cell=cell,
            seed=seed,
            facts=facts.get(run.id, {}),
            results_sha256=run.results_sha256,
        )
        for (arm, cell, seed), run in selection.counting.items()
        if run.status == "completed" and PHASES.index(run.phase) >= lowest
    ]
    return check(
        realised,
        arms=tuple(study.arms),
        factor=study.factor,
        grid=tuple(study.grid),
        engine=study.table.engine,
    )


def _blocking(claim: Claim, study: Study, findings: Sequence[Finding]) -> list[str]:
    """Findings that void what a claim's criterion reads.

    A contract finding stands between arms, wherever in the criterion they are named.
    """
    measures = [node for node in parse(claim.criterion).nodes() if isinstance(node, Measure)]
    named = {arm for measure in measures for arm in measure.arms}
    if any(not measure.arms for measure in measures):
        named = set(study.arms)
    return [
        finding.message.rstrip(".")
        for finding in findings
        if any(
            finding.voids(m.function, m.metric, (m.arms or named) if finding.metrics else named)
            for m in measures
        )
    ]
