"""The contract: what arms differ in, found in what really ran, against the declared factor.

Runs of different arms are paired by cell and seed, and every fact of a pair is compared. What
differs under the factor is meant; what differs beside it confounds the comparison; an arm in
which nothing under the factor differs is a no-op, whatever its name. Arms without a common pair
are compared by their sets of values.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from assay.core.differences import Difference, Pair, Realised, Rule, Site, sites_of
from assay.core.findings import (
    Finding,
    by_value,
    confounds,
    mixed,
    mixed_data,
    no_ops,
    one_result,
    uncompared,
    without_effect,
)

__all__ = ["Contract", "Finding", "Realised", "check", "summarise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The outcome of a check.

    Attributes:
        arms: All arms of the study, in its order.
        factor: What they may differ in.
        findings: Blocking ones first.
        differences: What they do differ in under the factor: key → arm → value as shown.
        num_pairs: Cell × seed combinations that at least two arms have.
        without_runs: Arms that have no complete run yet.
    """

    arms: tuple[str, ...]
    factor: tuple[str, ...]
    findings: tuple[Finding, ...]
    differences: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    num_pairs: int = 0
    without_runs: tuple[str, ...] = ()

    def blocking(self, arms: Collection[str] | None = None) -> tuple[Finding, ...]:
        """The findings that forbid a verdict: on any arm, or on a statement that uses `arms`."""
        return tuple(f for f in self.findings if f.blocks and (arms is None or f.touches(arms)))


def check(
    runs: Sequence[Realised],
    *,
    arms: Sequence[str],
    factor: Sequence[str],
    grid: Sequence[str] = (),
    engine: str | None = None,
    ignored: Collection[str] = (),
) -> Contract:
    """Compare what ran in the arms of one study.

    Args:
        runs: The complete runs, in any order.
        arms: All arms of the study.
        factor: What the arms may differ in (`Study.factor`).
        grid: Settings that are crossed with the arms.
        engine: The study's engine. Its arms are compared by configuration and by the source
            that ran, so a commit that changes only documents is no difference; arms that are
            commands (None) are compared by command line, files and repository.
        ignored: Facts, or first parts of their names, to leave out.
    """
    runs = sorted(runs, key=lambda run: (run.arm, run.cell, run.seed, run.run_id))
    rule = Rule(runs, tuple(factor), tuple(grid), engine, tuple(ignored))
    sites = sites_of(runs)
    meant: dict[str, Difference] = {}
    undeclared: dict[str, Difference] = {}
    not_comparable: dict[str, set[str]] = {}
    same: dict[Pair, tuple[int, int]] = {}
    for site in sites:
        separated = _compare(site, rule, meant, undeclared, not_comparable)
        for pair in combinations(sorted(site.runs), 2):
            count, total = same.get(pair, (0, 0))
            same[pair] = (count + (pair not in separated), total + 1)
    num_pairs = sum(site.paired for site in sites)
    idle = no_ops(same, rule.factor)
    findings = [
        *confounds(undeclared, rule.factor, num_pairs),
        *idle,
        *without_effect(sites, {pair for f in idle for pair in f.pairs}, rule.factor),
        *mixed(runs, rule),
        *mixed_data(runs, rule),
        *one_result(runs),
        *uncompared(not_comparable),
    ]
    present = {run.arm for run in runs}
    return Contract(
        arms=tuple(arms),
        factor=rule.factor,
        findings=tuple(
            sorted(findings, key=lambda f: (not f.blocks, f.kind, f.keys, f.pairs, f.arms))
        ),
        differences={key: dict(sorted(meant[key].values.items())) for key in sorted(meant)},
        num_pairs=num_pairs,
        without_runs=tuple(arm for arm in arms if arm not in present),
    )


def _compare(
    site: Site,
    rule: Rule,
    meant: dict[str, Difference],
    undeclared: dict[str, Difference],
    not_comparable: dict[str, set[str]],
) -> set[Pair]:
    """Enter a site's differences; returns the pairs of arms that the factor separates there."""
    separated: set[Pair] = set()
    for key in rule.varying:
        tokens = rule.tokens(key, site)
        if tokens is None:
            not_comparable.setdefault(key, set()).update(site.runs)
            continue
        pairs = site.apart(tokens)
        declared = rule.allowed(key, site, pairs) if pairs else pairs
        separated |= declared
        if declared:
            meant.setdefault(key, Difference(key)).add(declared, site)
        if pairs - declared:
            undeclared.setdefault(key, Difference(key)).add(pairs - declared, site)
    return separated


def summarise(contract: Contract) -> list[str]:
    """The contract in sentences, for the log: what was compared, what differs, what is wrong."""
    factor = ", ".join(contract.factor) or "nothing"
    lines = []
    if len(contract.arms) > 1:
        lines.append(
            f"{len(contract.arms)} arms, compared over {contract.num_pairs} common "
            f"{'pair' if contract.num_pairs == 1 else 'pairs'} of cell and seed, may differ in: "
            f"{factor}."
        )
    for key, values in contract.differences.items():
        lines.append(f"As declared, {key} is {by_value(values)}.")
    if contract.without_runs:
        lines.append(f"Without a complete run: {', '.join(contract.without_runs)}.")
    if len(contract.arms) > 1 and not contract.blocking():
        lines.append("Nothing else differs.")
    return [*lines, *(finding.message for finding in contract.findings)]
