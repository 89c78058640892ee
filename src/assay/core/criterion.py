"""The criterion language: what a claim may say about evidence, and nothing else.

`parse` reads the text (`assay.core.grammar` holds the whitelist), `check` holds it against a
study's arms, grid and metrics before anything runs, and `assay.core.evaluation` computes it from
an `Evidence`. This module imports no scipy, so that a study loads quickly.
"""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

from assay.core.errors import CriterionError
from assay.core.grammar import (
    FUNCTIONS,
    Arithmetic,
    Comparison,
    Logic,
    Measure,
    Negation,
    Node,
    Quantifier,
    build,
    unknown,
)


class Evidence(Protocol):
    """What a criterion sees of a study's finished runs."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Arm names of the study."""

    @property
    def grid(self) -> Mapping[str, tuple[Any, ...]]:
        """Grid keys and their values, in the study's order; empty without a grid."""

    @property
    def seeds(self) -> tuple[str, ...]:
        """Labels of all planned seeds."""

    @property
    def metrics(self) -> frozenset[str]:
        """Metrics that are declared or were logged; empty when nothing is known yet."""

    def values(self, metric: str, arm: str, cell: Mapping[str, Any]) -> Mapping[str, float | None]:
        """Seed label → final value, for runs that have ended and still count.

        None: the run failed or has no such value. A seed that is absent was not run (or has not
        ended, or was invalidated).
        """


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion that was read: its text and its tree."""

    text: str
    tree: Node

    @property
    def is_statistical(self) -> bool:
        """True when it estimates something from seeds; False when it reads exact values only."""
        return any(isinstance(n, Measure) and FUNCTIONS[n.function].estimates for n in self.nodes())

    def nodes(self) -> Iterator[Node]:
        """Every node of the tree."""
        waiting: list[Node] = [self.tree]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(children(node))


def parse(text: str) -> Criterion:
    """Read a criterion.

    Raises:
        CriterionError: It is not a Python expression, holds something that is not in the
            language, or is too long or too deep. The message gives line and column.
    """
    return Criterion(text=text, tree=build(text))


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly under one."""
    match node:
        case Arithmetic():
            return (node.left, node.right)
        case Comparison():
            return node.operands
        case Logic():
            return node.parts
        case Negation() | Quantifier():
            return (node.part,)
        case _:
            return ()


def check(
    criterion: str | Criterion,
    *,
    arms: Sequence[str],
    grid: Mapping[str, Sequence[Any]],
    metrics: AbstractSet[str] | None = None,
) -> None:
    """Hold a criterion against a study, before anything runs.

    Args:
        criterion: Its text, or what `parse` returned.
        arms: The study's arms.
        grid: Grid keys and values; a key with one value need not be named in a criterion.
        metrics: Metrics that can be had; None (or an empty set) when that is not known yet.

    Raises:
        CriterionError: Not in the language; a metric, arm, dimension or cell value that does not
            exist (with the known ones); a dimension that is neither fixed nor bound, fixed and
            bound, or bound and unused.
    """
    read = parse(criterion) if isinstance(criterion, str) else criterion
    if clash := [key for key in grid if key in ("arm", "seed")]:
        raise CriterionError(
            f"grid: the key {clash[0]!r} is the name of a dimension that every study has. "
            "Rename the key in [grid]."
        )
    _Checker(read.text, tuple(arms), grid, metrics or None).dims(read.tree, frozenset())


@dataclass(frozen=True, slots=True)
class _Checker:
    text: str
    arms: tuple[str, ...]
    grid: Mapping[str, Sequence[Any]]
    metrics: AbstractSet[str] | None

    def error(self, node: Measure | Quantifier, message: str) -> CriterionError:
        return CriterionError(
            f"criterion, {node.place}: {message} In {' '.join(self.text.split())!r}."
        )

    def dims(self, node: Node, bound: frozenset[str]) -> frozenset[str]:
        """Check a node; returns the dimensions that it takes from quantifiers around it."""
        if isinstance(node, Measure):
            return self.measure(node, bound)
        if isinstance(node, Quantifier):
            self.known_dim(node, node.dim)
            if node.dim in bound:
                raise self.error(node, f"{node.dim!r} is bound twice. Remove one of the two.")
            used = self.dims(node.part, bound | {node.dim})
            if node.dim not in used:
                raise self.error(
                    node,
                    f"nothing inside {node.function}({node.dim!r}, …) depends on {node.dim!r}. "
                    f"Leave {node.dim!r} out of a call inside, or remove {node.function}.",
                )
            return used - {node.dim}
        return frozenset().union(*(self.dims(child, bound) for child in children(node)))

    def known_dim(self, node: Measure | Quantifier, dim: str) -> None:
        if dim not in (known := (*self.grid, "arm", "seed")):
            raise self.error(node, unknown("dimension", dim, known))

    def measure(self, node: Measure, bound: frozenset[str]) -> frozenset[str]:
        if self.metrics is not None and node.metric not in self.metrics:
            raise self.error(node, unknown("metric", node.metric, sorted(self.metrics)))
        for arm in node.arms:
            if arm not in self.arms:
                raise self.error(node, unknown("arm", arm, self.arms))
        used = self.cell(node, bound)
        if not node.arms:
            if "arm" not in bound:
                raise self.error(
                    node,
                    f"{node.function} needs an arm: name one of {', '.join(self.arms)}, or put "
                    'the call inside every("arm", …) or any("arm", …).',
                )
            used |= {"arm"}
        if "seed" in bound:
            if node.function != "value":
                raise self.error(
                    node,
                    f"{node.function} takes all seeds, so it cannot stand inside a quantifier "
                    "over seeds. Use value(…) there.",
                )
            used |= {"seed"}
        return used

    def cell(self, node: Measure, bound: frozenset[str]) -> frozenset[str]:
        fixed = dict(node.cell)
        for key, value in fixed.items():
            if key not in self.grid:
                raise self.error(node, unknown("grid key", key, self.grid))
            if not any(same(value, known) for known in self.grid[key]):
                raise self.error(node, unknown(f"value of {key},", value, self.grid[key]))
        if node.dim is not None:
            self.monotone(node, bound, fixed)
        for key in fixed:
            if key in bound:
                raise self.error(
                    node,
                    f"{key!r} is bound by a quantifier and fixed here as well. Remove one of them.",
                )
        free = [k for k in self.grid if k not in fixed and k != node.dim and k not in bound]
        if open_dims := [key for key in free if len(self.grid[key]) > 1]:
            key = open_dims[0]
            raise self.error(
                node,
                f"{node.function} does not say which {key}: fix it ({key.replace('.', '__')}="
                f"{self.grid[key][0]!r}) or bind it (every({key!r}, …)). Values: "
                f"{', '.join(map(repr, self.grid[key]))}.",
            )
        return frozenset(key for key in self.grid if key in bound and key not in fixed)

    def monotone(self, node: Measure, bound: frozenset[str], fixed: Mapping[str, Any]) -> None:
        dim = str(node.dim)
        if dim not in self.grid:
            raise self.error(node, unknown("grid key", dim, self.grid))
        if dim in fixed or dim in bound:
            raise self.error(node, f"monotone looks along {dim!r}; it cannot be fixed or bound.")
        if len(self.grid[dim]) < 2:
            raise self.error(node, f"{dim!r} has one value only; monotone needs two or more.")


def same(a: object, b: object) -> bool:
    """Equal grid values: 1 is 1.0, but True is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)
