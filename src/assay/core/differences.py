"""Which facts of two runs are compared, how, and which of them the factor may change."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from assay.core.study import under

ABSENT = "absent"
NOTHING = object()
SHOWN_CHARS = 60
CODE_STATE = ("vcs", "commit", "branch", "dirty", "diff_sha256", "tree_sha256")
TIME = re.compile(r"(^|_)(s|ms|us|min|h|seconds?|minutes?|hours?|time|wall\w*)$")
"""Time spent is a cost: it differs between any two runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """One complete run as the contract sees it.

    Attributes:
        run_id: Its id.
        arm: Its arm.
        cell: Label of its cell.
        seed: Label of its seeds; runs of different arms pair by cell and seed.
        facts: `provenance.flat`, with `config.KEY` (resolved), `seed.ROLE`, `budget.NAME`
            (declared) and `spent.NAME` (realised).
        results_sha256: Digest of its metric rows without times; None without any.
    """

    run_id: str
    arm: str
    cell: str
    seed: str
    facts: Mapping[str, Any]
    results_sha256: str | None = None


Pair = tuple[str, str]
Tokens = dict[str, frozenset[str]]
"""Arm → its values of one fact, as text that is equal when they are."""


@dataclass(frozen=True, slots=True)
class Site:
    """Runs that must agree in all but the factor: one cell and seed, or two arms without one."""

    runs: Mapping[str, Sequence[Realised]]
    paired: bool

    def apart(self, tokens: Tokens) -> set[Pair]:
        """The pairs of arms whose values differ; without a common seed, whose values all do."""
        pairs = combinations(sorted(tokens), 2)
        if self.paired:
            return {(a, b) for a, b in pairs if tokens[a] != tokens[b]}
        return {(a, b) for a, b in pairs if tokens[a].isdisjoint(tokens[b])}


@dataclass(slots=True)
class Difference:
    """One fact that differs, over all sites."""

    key: str
    values: dict[str, str] = field(default_factory=dict)
    pairs: set[Pair] = field(default_factory=set)
    num_sites: int = 0

    def add(self, pairs: set[Pair], site: Site) -> None:
        """Enter one more site; the first that shows an arm gives the value for the message."""
        self.pairs |= pairs
        self.num_sites += 1
        for arm in sorted({arm for pair in pairs for arm in pair}):
            self.values.setdefault(arm, shown(site.runs[arm][0].facts.get(self.key, NOTHING)))


def sites_of(runs: Sequence[Realised]) -> list[Site]:
    """Each cell and seed that two arms have; then each pair of arms that never meet in one."""
    places: dict[tuple[str, str], dict[str, list[Realised]]] = {}
    by_arm: dict[str, list[Realised]] = {}
    for run in runs:
        places.setdefault((run.cell, run.seed), {}).setdefault(run.arm, []).append(run)
        by_arm.setdefault(run.arm, []).append(run)
    sites = [Site(place, paired=True) for place in places.values() if len(place) > 1]
    met = {pair for site in sites for pair in combinations(sorted(site.runs), 2)}
    sites += [
        Site({a: by_arm[a], b: by_arm[b]}, paired=False)
        for a, b in combinations(sorted(by_arm), 2)
        if (a, b) not in met
    ]
    return sites


class Rule:
    """Which facts are compared, how, and which may differ."""

    def __init__(
        self,
        runs: Sequence[Realised],
        factor: tuple[str, ...],
        grid: tuple[str, ...],
        engine: str | None,
        ignored: tuple[str, ...],
    ) -> None:
        self.factor, self.grid = factor, grid
        skipped = ["hmac", "code.branch", *ignored]

        def all_have(key: str) -> bool:
            return all(run.facts.get(key) is not None for run in runs)

        skipped += ["config"] if engine is None else ["argv", "scripts", "binary"]
        # The source digest of an installed engine covers its package. A project's own engine
        # (module:NAME) may import any file of the project, as a command may.
        packaged = engine is not None and ":" not in engine
        if packaged and all_have("code.source_sha256"):
            skipped += [f"code.{name}" for name in CODE_STATE]
        elif all_have("code.tree_sha256"):
            # Committing the log or the ledger moves the commit and leaves the code as it was.
            skipped.append("code.commit")
        if all("code.diff_sha256" in run.facts for run in runs):
            skipped.append("code.dirty")
        self.varying = tuple(
            key
            for key in sorted(_varying(runs))
            if not any(under(key, name) for name in skipped)
            and not (key.startswith("spent.") and TIME.search(key))
        )

    def tokens(self, key: str, site: Site) -> Tokens | None:
        """The values of a fact in each arm; None if they cannot be compared."""
        family, _, name = key.partition(".")
        if not site.paired:
            if family == "data":
                return None  # A fingerprint may depend on the seed, and no seed is common.
            if family == "seed" or any(under(name, g) for g in self.grid if family == "config"):
                return {}
        everyone = [run for runs in site.runs.values() for run in runs]
        values = [run.facts.get(key, NOTHING) for run in everyone]
        digests = family == "env" and any(str(v).startswith("hmac:") for v in values)
        if digests:
            key = f"hmac.{name}"
            values = [run.facts.get(key, v) for run, v in zip(everyone, values, strict=True)]
            if len({str(v).split(":")[1] for v in values if str(v).startswith("hmac:")}) > 1:
                return None
        elif key == "argv.order" and len({_slots(run) for run in everyone}) > 1:
            return {}  # Another option is reported itself; it always changes the order.
        tokens: dict[str, set[str]] = {}
        for run, value in zip(everyone, values, strict=True):
            replaced = () if site.paired else ("seed", *(f"config.{g}" for g in self.grid))
            tokens.setdefault(run.arm, set()).add(token(_templated(value, run, replaced)))
        return {arm: frozenset(found) for arm, found in tokens.items()}

    def allowed(self, key: str, site: Site, pairs: set[Pair]) -> set[Pair]:
        """Those of the pairs whose difference is the factor or follows from it."""
        if any(self._names(f, key) for f in self.factor):
            return pairs
        family, _, slot = key.partition(".")
        if family not in ("argv", "scripts"):
            return set()
        argv = f"argv.{slot}"
        raw, filled = {}, {}
        for arm, runs in site.runs.items():
            names = tuple(f"config.{f}" for f in self.factor)
            values = [(run, run.facts.get(argv, NOTHING)) for run in runs]
            raw[arm] = frozenset(token(value) for _, value in values)
            filled[arm] = frozenset(token(_templated(value, run, names)) for run, value in values)
        # A word of the command that holds the factor's value, such as out/{method}.csv.
        return pairs & (site.apart(raw) - site.apart(filled))

    def _names(self, factor: str, key: str) -> bool:
        family, _, rest = key.partition(".")
        if under(key, factor) or (family == "config" and under(rest, factor)):
            return True
        if family in ("argv", "scripts") and under(_plain_option(rest), _plain_option(factor)):
            return True
        if family in ("spent", "budget"):
            return factor in ("budget", "spent") or rest == factor.rpartition(".")[2]
        if factor == "cmd":
            # Another program brings its own packages: the Python of another environment.
            brought = ("packages", "installed", "python") if "argv.0" in self.varying else ()
            return family in ("argv", "scripts", "binary", *brought)
        return False


def _varying(runs: Sequence[Realised]) -> set[str]:
    """The keys that do not have one value in all runs: few, of the hundreds of facts."""
    varying: set[str] = set()
    if not runs:
        return varying
    first = runs[0].facts
    for run in runs[1:]:
        if run.facts is first:
            continue
        varying.update(k for k, v in run.facts.items() if first.get(k, NOTHING) != v)
        if len(run.facts) < len(first) or not run.facts.keys() >= first.keys():
            varying.update(first.keys() - run.facts.keys())
    return varying


def _slots(run: Realised) -> tuple[str, ...]:
    return tuple(sorted(str(run.facts.get("argv.order", "")).split(" ")))


def _plain_option(name: str) -> str:
    return name.lstrip("-+~").replace("-", "_")


def _templated(value: Any, run: Realised, names: Sequence[str]) -> Any:
    """A text with the run's own values of the named facts left out, as whole words."""
    if not names or not isinstance(value, str):
        return value
    texts = {
        str(v)
        for k, v in run.facts.items()
        if any(under(k, name) for name in names) and isinstance(v, str | int | float)
    }
    for text in sorted(filter(None, texts), key=lambda t: (-len(t), t)):
        value = re.sub(rf"(?<![A-Za-z0-9]){re.escape(text)}(?![A-Za-z0-9])", "{}", value)
    return value


def token(value: Any) -> str:
    """A value as text that is equal exactly when the values are; 1 and 1.0 are."""
    if value is NOTHING:
        return ABSENT
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def shown(value: Any) -> str:
    """A value for a sentence: short, and a keyed digest called so."""
    if value is NOTHING:
        return ABSENT
    if isinstance(value, str) and value.startswith("hmac:"):
        return f"<digest {value.rpartition(':')[2]}>"
    text = repr(value) if isinstance(value, str) else token(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
