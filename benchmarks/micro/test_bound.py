"""Checking 10,000 bound numbers of a Markdown text, as `assay log --check` does. Target: 2 s.

pytest benchmarks/micro/test_bound.py            (or --benchmark-disable for a smoke test)
"""

from types import SimpleNamespace

import pytest

from assay.core.bound import check_text, fixed_text, unbound_numbers

VALUES = {str(seed): 0.5 + seed / 1000 for seed in range(32)}
EVIDENCE = SimpleNamespace(
    arms=("a", "b"),
    grid={},
    seeds=tuple(VALUES),
    metrics=frozenset({"acc"}),
    values=lambda metric, arm, cell: VALUES,
)
LINE = (
    "The arm reached 0.52±0.01<!--assay:d8/a acc--> and 0.503<!--assay:d8/b acc seed=3--> at "
    "last, that is **51.55%**<!--assay:d8/a acc stat=mean-->.\n"
)
TEXT = LINE * 3334


@pytest.mark.benchmark(group="10,000 bound numbers")
def test_check(benchmark):
    assert benchmark(lambda: check_text(TEXT, lambda study: EVIDENCE)) == []


@pytest.mark.benchmark(group="10,000 bound numbers")
def test_fix(benchmark):
    assert benchmark(lambda: fixed_text(TEXT, lambda study: EVIDENCE))[1] == []


@pytest.mark.benchmark(group="10,000 bound numbers")
def test_count_of_unbound(benchmark):
    assert benchmark(lambda: unbound_numbers(TEXT)) == []
