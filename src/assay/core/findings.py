"""What is wrong with a comparison of arms, each in one sentence with the way out."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from assay.core.differences import NOTHING, Difference, Pair, Realised, Rule, Site, token
from assay.core.study import under

SHOWN_KEYS = 4

INCIDENTAL = (
    *("installed", "machine.kernel", "env.PATH", "env.TMPDIR", "env.VIRTUAL_ENV", "env.USER"),
    *("env.LOGNAME", "env.CUDA_VISIBLE_DEVICES"),
)
"""Facts that differ between two shells and decide nothing that is not recorded itself: the
program, the packages and the device are."""
ONE_VERSION = (
    *("code", "scripts", "binary", "packages", "python", "engine", "env"),
    *("machine", "device", "threads"),
)
HARDWARE = ("machine", "device", "threads")
TOGETHER = ("packages", "python", "machine", "code", "incidental")
"""Families that change as one: reported in one finding, every key named in it."""

WAYS_OUT = {
    "code": "run the older arm again with the present code",
    "packages": "run the arms in one environment",
    "python": "run the arms with one Python",
    "binary": "run the arms with one build",
    "engine": "run the arms with one build of the engine",
    "machine": "run the arms on one machine",
    "device": "run the arms on one kind of device",
    "data": "run the arms on the same data",
    "spent": "give the arms the same budget",
    "scripts": "run the arms with the same file",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong with a comparison of arms.

    Attributes:
        kind: "confounded", "unequal-budget", "no-op", "mixed-versions", "mixed-data",
            "identical-results", "incidental" or "not-comparable"; or the name of an audit (`assay.core.audit.CHECKS`).
        arms: The arms concerned.
        keys: The facts concerned.
        message: One sentence: what differs, the values, the arms, the way out.
        blocks: Whether no verdict may rest on a comparison that it touches.
        pairs: The pairs of arms between which it stands; empty if it concerns each arm alone.
        metrics: The metrics concerned; empty for all.
        functions: The functions of a criterion whose answer it voids; empty for all.
    """

    kind: str
    arms: tuple[str, ...]
    keys: tuple[str, ...]
    message: str
    blocks: bool
    pairs: tuple[tuple[str, str], ...] = ()
    metrics: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()

    @property
    def weight(self) -> str:
        """What it does to verdicts, and to which."""
        if not self.blocks:
            return "note"
        return (
            f"blocks verdicts on {', '.join(self.metrics)}" if self.metrics else "blocks verdicts"
        )

    def voids(self, function: str, metric: str, arms: Collection[str]) -> bool:
        """Whether a part of a criterion, such as `mean("acc", "a")`, rests on what was found."""
        return (
            self.blocks
            and self.touches(arms)
            and (not self.metrics or metric in self.metrics)
            and (not self.functions or function in self.functions)
        )

    def touches(self, arms: Collection[str]) -> bool:
        """Whether a statement that uses these arms rests on what was found."""
        named = set(arms)
        if self.pairs:
            return any(named.issuperset(pair) for pair in self.pairs)
        return not named.isdisjoint(self.arms)


def confounds(
    differences: Mapping[str, Difference], factor: Sequence[str], num_sites: int
) -> Iterator[Finding]:
    """Differences beside the factor; those of one family between the same arms are one."""
    found: dict[tuple[str, str, tuple[Pair, ...]], list[Difference]] = {}
    for key in sorted(differences):
        family = key.partition(".")[0]
        kind = "unequal-budget" if family in ("spent", "budget") else "confounded"
        if any(under(key, name) for name in INCIDENTAL):
            kind = family = "incidental"
        pairs = tuple(sorted(differences[key].pairs))
        place = (kind, family if family in TOGETHER else key, pairs)
        found.setdefault(place, []).append(differences[key])
    for (kind, together, pairs), members in found.items():
        keys = tuple(member.key for member in members)
        more = f" (and {_listed(keys[1:])} too)" if len(keys) > 1 else ""
        what = f"{keys[0]} is {by_value(members[0].values)}{more}"
        count = members[0].num_sites
        often = "" if count >= num_sites else f", in {count} of {num_sites} pairs"
        yield Finding(
            kind=kind,
            arms=_arms(pairs),
            keys=keys,
            message=_SENTENCES[kind].format(
                what=what + often,
                factor=", ".join(factor) or "nothing",
                out=WAYS_OUT.get(keys[0].partition(".")[0], "give the arms the same value"),
                name=_as_factor(together),
            ),
            blocks=kind != "incidental",
            pairs=pairs,
        )


def _as_factor(key: str) -> str:
    """How a study file would declare this fact."""
    family, _, rest = key.partition(".")
    if family in ("argv", "scripts"):
        return "cmd" if rest.isdecimal() or rest == "order" else rest.lstrip("-+~")
    return rest if family == "config" else key


_SENTENCES = {
    "confounded": "Confounded: {what}, but only {factor} may differ between arms; {out}, or "
    "declare '{name}' as a further factor if the arms are meant as packages.",
    "unequal-budget": "Unequal budget: {what}, so a difference in results may come from what was "
    "spent; {out}, or declare '{name}' as the factor.",
    "incidental": "Incidental: {what}; it is kept on record and blocks nothing, since it decides "
    "no result that is not recorded itself.",
}


def no_ops(same: Mapping[Pair, tuple[int, int]], factor: Sequence[str]) -> list[Finding]:
    """Arms between which nothing under the factor differs: in `same` of so many sites."""
    name = ", ".join(factor) or "(none is declared)"
    result = []
    for count, pairs in _components({p: s for p, s in same.items() if s[0]}):
        arms = _arms(pairs)
        where = "" if count[0] == count[1] else f" in {count[0]} of {count[1]} pairs"
        result.append(
            Finding(
                kind="no-op",
                arms=arms,
                keys=tuple(factor),
                message=f"No-op arm: {joined(arms)} do not differ{where} in the declared factor "
                f"{name} in what really ran, so comparing them compares nothing; see that the "
                "setting reaches the program of one arm and no other, or remove an arm.",
                blocks=True,
                pairs=pairs,
            )
        )
    return result


def without_effect(
    sites: Sequence[Site], known: Collection[Pair], factor: Sequence[str]
) -> Iterator[Finding]:
    """Arms whose results are the same to the last bit in every common pair."""
    equal: dict[Pair, list[bool]] = {}
    for site in sites:
        if not site.paired:
            continue
        results = {arm: {r.results_sha256 for r in runs} for arm, runs in site.runs.items()}
        for a, b in combinations(sorted(results), 2):
            once = results[a] == results[b] and len(results[a]) == 1 and None not in results[a]
            equal.setdefault((a, b), []).append(once)
    pairs = {p: (len(e), len(e)) for p, e in equal.items() if all(e) and p not in known}
    for _, members in _components(pairs):
        arms = _arms(members)
        yield Finding(
            kind="no-op",
            arms=arms,
            keys=tuple(factor),
            message=f"No-op arm: the results of {joined(arms)} are the same to the last bit in "
            f"every pair although {', '.join(factor)} differs, so the setting had no effect; see "
            "that the program reads it, or remove an arm.",
            blocks=True,
            pairs=members,
        )


def mixed(runs: Sequence[Realised], rule: Rule) -> Iterator[Finding]:
    """Arms whose runs are not of one version: of code, packages, environment, machine."""
    by_arm: dict[str, list[Realised]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    for arm, members in by_arm.items():
        site = Site({arm: members}, paired=True)
        found: dict[bool, list[tuple[str, int]]] = {}
        for key in rule.varying:
            family = key.partition(".")[0]
            if family not in ONE_VERSION or any(under(key, n) for n in (*INCIDENTAL, *rule.grid)):
                continue
            count = len((rule.tokens(key, site) or {}).get(arm, ()))
            if count > 1:
                found.setdefault(family not in HARDWARE, []).append((key, count))
        for blocks, varied in found.items():
            keys = tuple(key for key, _ in varied)
            tail = (
                "so its numbers are not of one thing; `assay run --again` computes all of them anew"
                if blocks
                else "which blocks nothing as long as each pair of arms ran on one"
            )
            yield Finding(
                kind="mixed-versions",
                arms=(arm,),
                keys=keys,
                message=f"Mixed versions: the runs of arm {arm} have {varied[0][1]} values of "
                f"{_listed(keys)}, {tail}.",
                blocks=blocks,
            )


def mixed_data(runs: Sequence[Realised], rule: Rule) -> Iterator[Finding]:
    """Arms whose seeds read different data, where no seed drew them: a file changed on the way.

    Data may be drawn from a seed: then their fingerprint differs exactly where that seed does. An
    engine may name what it drew by the seed, so that a fact stands in some runs only: these facts
    are judged as one, since by what each run has of them they follow the seed, or do not.
    """
    places: dict[tuple[str, str], list[Realised]] = {}
    for run in runs:
        places.setdefault((run.arm, run.cell), []).append(run)
    found: dict[str, set[str]] = {}
    varying = [key for key in rule.varying if key.startswith("data.")]
    for (arm, _), members in places.items():
        counts = {key: sum(key in run.facts for run in members) for key in varying}
        whole = [[key] for key, count in counts.items() if count == len(members)]
        partial = [key for key, count in counts.items() if 0 < count < len(members)]
        for together in (*whole, partial):
            if not _drawn(together, members):
                found.setdefault(arm, set()).update(together)
    for arm, changed in found.items():
        keys = tuple(sorted(changed))
        yield Finding(
            kind="mixed-data",
            arms=(arm,),
            keys=keys,
            message=f"Mixed data: {_listed(keys)} is not the same for every seed of arm {arm}, and "
            "no seed drew it, so a file changed between the runs and their spread is not that of "
            "seeds; bring the old data back, or compute all of them anew with `assay run --again`.",
            blocks=True,
        )


def _drawn(keys: Sequence[str], runs: Sequence[Realised]) -> bool:
    """Whether the values of facts, taken together, are one or differ exactly where a seed does."""
    values = [tuple(token(run.facts.get(key, NOTHING)) for key in keys) for run in runs]
    if len(set(values)) == 1:
        return True
    roles = {name for run in runs for name in run.facts if name.startswith("seed.")}
    drawers = [[token(run.facts.get(role, NOTHING)) for run in runs] for role in roles]
    drawers.append([run.seed for run in runs])
    return any(
        len(set(seeds)) == len(set(values)) == len(set(zip(seeds, values, strict=True)))
        for seeds in drawers
    )


def one_result(runs: Sequence[Realised]) -> Iterator[Finding]:
    """Arms whose seeds all give the same results, to the last bit."""
    places: dict[str, dict[str, dict[str, set[str | None]]]] = {}
    for run in runs:
        seeds = places.setdefault(run.arm, {}).setdefault(run.cell, {})
        seeds.setdefault(run.seed, set()).add(run.results_sha256)
    for arm, cells in places.items():
        many = [set[str | None]().union(*s.values()) for s in cells.values() if len(s) > 1]
        if many and all(len(results) == 1 and None not in results for results in many):
            yield Finding(
                kind="identical-results",
                arms=(arm,),
                keys=("seed",),
                message=f"Identical results: every seed of arm {arm} gives the same numbers to the "
                "last bit, so more seeds are no more evidence; see that the program reads its "
                "seed.",
                blocks=False,
            )


def uncompared(keys: Mapping[str, Collection[str]]) -> Iterator[Finding]:
    """Facts that were recorded so that they cannot be compared."""
    if keys:
        names = tuple(sorted(keys))
        arms = tuple(sorted({arm for found in keys.values() for arm in found}))
        yield Finding(
            kind="not-comparable",
            arms=arms,
            keys=names,
            message=f"Not compared between {joined(arms)}: {_listed(names)} (digests made with "
            "different keys, or data without a common seed); run the arms from one machine and "
            "with common seeds to compare them.",
            blocks=False,
        )


def by_value(values: Mapping[str, str]) -> str:
    """Arms grouped by their value: "1 in a and b, 2 in c"."""
    arms: dict[str, list[str]] = {}
    for arm, value in sorted(values.items()):
        arms.setdefault(value, []).append(arm)
    return ", ".join(f"{value} in {joined(names)}" for value, names in arms.items())


def _components(
    pairs: Mapping[Pair, tuple[int, int]],
) -> Iterator[tuple[tuple[int, int], tuple[Pair, ...]]]:
    """Pairs with one count that hang together."""
    groups: list[tuple[tuple[int, int], set[str], list[Pair]]] = []
    for pair, count in sorted(pairs.items()):
        near = [g for g in groups if g[0] == count and not g[1].isdisjoint(pair)]
        merged = (count, set(pair).union(*(g[1] for g in near)), [pair])
        merged[2].extend(p for g in near for p in g[2])
        groups = [g for g in groups if g not in near] + [merged]
    for count, _, members in groups:
        yield count, tuple(sorted(members))


def _arms(pairs: Collection[Pair]) -> tuple[str, ...]:
    return tuple(sorted({arm for pair in pairs for arm in pair}))


def joined(names: Sequence[str]) -> str:
    """Names as in a sentence: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _listed(keys: Sequence[str]) -> str:
    if len(keys) <= SHOWN_KEYS:
        return joined(keys)
    return f"{', '.join(keys[:SHOWN_KEYS])} and {len(keys) - SHOWN_KEYS} more"
