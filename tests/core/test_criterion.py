"""The criterion language: what it reads, what it refuses, and its three-valued answers."""

import ast
import contextlib
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.core.criterion import check, children, parse
from assay.core.errors import CriterionError
from assay.core.estimates import Estimate
from assay.core.evaluation import Truth, all_of, any_of, compare, evaluate, flip
from assay.core.grammar import FUNCTIONS, QUANTIFIERS
from assay.core.statistics import Interval, newcombe_difference, welch_difference

SEEDS = ("42", "43", "44", "45")
ANSWERS = ("no", "open", "yes")
CONFIDENCES = (0.01, 0.3, 0.6, 0.8, 0.9, 0.95, 0.99, 0.9999, 1 - 1e-9)


class Table:
    """Evidence from a dictionary: (metric, arm, *cell values) → values by position of the seed."""

    def __init__(self, data, *, grid=None, seeds=SEEDS, arms=("new", "base")):
        self.data, self.grid, self.seeds, self.arms = data, grid or {}, tuple(seeds), tuple(arms)
        self.metrics = frozenset(key[0] for key in data)

    def values(self, metric, arm, cell):
        found = self.data.get((metric, arm, *cell.values()), ())
        if isinstance(found, dict):
            return found
        return {s: v for s, v in zip(self.seeds, found, strict=False) if v != "absent"}


GRID = {"alpha": (0.0, 1.0), "depth": (2, 4, 8)}
ACC = Table({("acc", "new"): [0.9, 0.8, 0.95, 0.85], ("acc", "base"): [0.7, 0.65, 0.75, 0.6]})
CELLS = Table(
    {
        ("rho", arm, alpha, depth): [
            0.1 * depth + 0.01 * i + (arm == "new") * alpha * (0.2 + 0.005 * i) for i in range(4)
        ]
        for arm in ("new", "base")
        for alpha in GRID["alpha"]
        for depth in GRID["depth"]
    },
    grid=GRID,
)


def answer(text, evidence=ACC, **options):
    return evaluate(parse(text), evidence, **options).answer


# ---- What is refused -------------------------------------------------------------------------

HOSTILE = [
    "__import__('os').system('true')",
    "().__class__.__base__.__subclasses__()",
    "mean.__globals__",
    "mean('acc', 'new').__class__ > 0",
    "[x for x in (1,)]",
    "{x: 1 for x in 'a'}",
    "(lambda: 1)()",
    "open('canary', 'w')",
    "x.mean('acc', 'new') > 0",
    "().__class__.any('arm', mean('acc') > 0)",
    "mean('acc', 'new', **3) > 0",
    "eval('1') > 0",
    "exec('import os')",
    "f'{open(1)}' > 0",
    "(x := 1) > 0",
    "mean(*['acc', 'new']) > 0",
    "mean(**{'metric': 'acc'}) > 0",
    "mean('acc', 'new')[0] > 0",
    "mean('acc', 'new', alpha=[1]) > 0",
    "mean('acc', 'new', alpha=print()) > 0",
    "10 ** 10 ** 10 > 0",
    "9 % 4 > 0",
    "1 if 1 > 0 else 0",
    "1 in (1, 2)",
    "1 is 1",
    "1 not in 1",
    "'a' * 1000000 > 0",
    "True > 0",
    "None == 0",
    "1j > 0",
    "b'a' == 0",
    "... > 0",
    "+1 > 0",
    "~1 > 0",
    "mean > 0",
    "x > 0",
    "(1, 2) > 0",
    "await x",
    "(yield 1)",
    "min(1, 2) > 0",
    "every('arm', any)",
    "mean(('acc'), 'new', at=lambda: 1) > 0",
    "1 > 0, 2",
    "a = 1",
    "import os",
    "1 > 0 # and\nimport os",
    ") or (1 > 0",
    "\x00",
    "\ud800 > 0",
    "",
    "   ",
    "1e400 > 0",
    "mean('acc', 'new') > 1_000_000_000_000_000_000_000_000_000_000_000_000",
    "9" * 1_900 + " > 0",
    "(" * 900 + "1 > 0" + ")" * 900,
    "-" * 1_500 + "1 > 0",
    "not " * 400 + "1 > 0",
    " and ".join(["1 > 0"] * 200),
    "1 > 0" + " " * 2_000 + "or 1 > 0",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:40]))
def test_anything_outside_the_whitelist_is_an_error(text):
    """Each form of Python that the language does not have, and each limit."""
    with pytest.raises(CriterionError, match=r"^criterion"):
        parse(text)


ALLOWED = (
    *(ast.Expression, ast.Constant, ast.Call, ast.Name, ast.Load, ast.keyword),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UnaryOp, ast.USub, ast.Not),
    *(ast.BoolOp, ast.And, ast.Or, ast.Compare),
    *(ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq),
)
WATCHED = ("exec", "import", "open", "os.", "subprocess.", "socket.", "ctypes.", "shutil.")
happened: list[str] = []
watching = False


def _watch(event, _arguments):
    if watching and event.startswith(WATCHED):
        happened.append(event)


sys.addaudithook(_watch)


@contextlib.contextmanager
def nothing_runs():
    """The interpreter reports no code executed, module imported, file or process opened."""
    global watching  # noqa: PLW0603
    happened.clear()
    watching = True
    try:
        yield
    finally:
        watching = False
    assert happened == []


words = st.sampled_from([*FUNCTIONS, *QUANTIFIERS, "within", "open", "__import__", "exec", "x"])
atoms = st.one_of(
    st.integers(-3, 10**40).map(str),
    st.floats().map(repr),
    st.sampled_from(["'acc'", "'new'", "'base'", "'seed'", "'arm'", "True", "None", "1j", "x"]),
    words,
)


def _combine(part):
    pairs = st.tuples(part, part)
    return st.one_of(
        st.tuples(words, st.lists(part, max_size=3)).map(lambda t: f"{t[0]}({', '.join(t[1])})"),
        st.tuples(words, part).map(lambda t: f"{t[0]}('acc', 'new', at_least={t[1]})"),
        part.map(lambda p: f"mean('acc', 'new') > {p}"),
        part.map(lambda p: f"any('seed', value('acc', 'new') >= {p})"),
        st.tuples(
            part,
            st.sampled_from(
                [*"+-*/%@<", "**", "<=", "==", "!=", " is ", " in ", " and ", " or ", " if "]
            ),
            part,
        ).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        part.map(lambda p: f"({p}).__class__"),
        part.map(lambda p: f"({p})[0]"),
        part.map(lambda p: f"({p}).mean('acc', 'new') > 0"),
        part.map(lambda p: f"[y for y in {p}]"),
        part.map(lambda p: f"(lambda: {p})()"),
        part.map(lambda p: f"(y := {p})"),
        part.map(lambda p: f'f"{{{p}}}"'),
        part.map(lambda p: f"__import__('os').mkdir(str({p}))"),
        part.map(lambda p: f"not {p}"),
        part.map(lambda p: f"-{p}"),
        pairs.map(lambda t: f"mean(*{t[0]}, **{t[1]})"),
    )


expressions = st.recursive(atoms, _combine, max_leaves=8)


@given(expressions)
@settings(max_examples=600, deadline=None)
def test_nothing_outside_the_whitelist_is_reached(text):
    """Any Python expression is an error or one of three answers; it never executes anything.

    An accepted one has node types of the whitelist only, and names only as functions called.
    """
    accepted = False
    with nothing_runs():
        try:
            assert answer(text) in ANSWERS
            accepted = True
        except CriterionError as error:
            message = str(error)
    assert accepted or message.startswith("criterion")
    if accepted:
        tree = ast.parse(text, mode="eval")
        assert {type(node) for node in ast.walk(tree)} <= set(ALLOWED)
        called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert all(id(n) in called for n in ast.walk(tree) if isinstance(n, ast.Name))


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_error_or_a_criterion(text):
    """No text at all raises anything but CriterionError, or runs anything."""
    with nothing_runs(), contextlib.suppress(CriterionError):
        assert answer(text) in ANSWERS


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("mean('acc', 'new' > 3", "column 5", "never closed"),
        ("mean('acc', 'new') >", "column 21", "invalid syntax"),
        ("mean('acc', 'new') > men('acc', 'new')", "column 22", "Did you mean 'mean'"),
        ("mean('acc', 'new') > 0\nand\nacc > 1", "line 3, column 1", "bare name"),
        ("0 < mean('acc', 'new')\n  and 1 +", "line 2, column 10", "syntax"),
        ("1 > 0 and\n 1 > > 0\n and 1 > 0", "line 2, column 6", "syntax"),
        ("mean('acc', 'new') > 0 and mean.x > 1", "column 28", "an attribute"),
        ("mean('acc', 'new')", "column 1", "Compare it"),
        ("(1 > 0) + 1 > 0", "column 2", "where a number is needed"),
        ("rate('acc', 'new') > 0", "column 1", "exactly one threshold"),
        ("rate('acc', 'new', above=1, below=2) > 0", "column 1", "exactly one threshold"),
        ("rate('acc', 'new', above='x') > 0", "column 1", "above is a number"),
        ("mean('acc', 'new', above=1) > 0", "column 1", "takes no 'above'"),
        ("diff('acc', 'new') > 0", "column 1", "needs b"),
        ("diff('acc', 'new', 'base', 'base') > 0", "column 1", "at most 3"),
        ("diff('acc', 'new', a='new', b='base') > 0", "column 20", "given twice"),
        ("value('acc', 'new', seed=3) > 0", "column 1", "takes no 'seed'"),
        ("mean(3, 'new') > 0", "column 6", "quoted text"),
        ("within(1, 2)", "column 1", "within(x, low, high)"),
        ("monotone('acc', 'new', 'depth')", "column 1", "needs a direction"),
        ("monotone('acc', 'new', 'depth', direction='left')", "column 1", '"up" or "down"'),
    ],
)
def test_messages_say_where_and_what(text, place, says):
    """A message has the position, the rule and the expression."""
    with pytest.raises(CriterionError) as raised:
        parse(text)
    assert place in str(raised.value)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mean('roh', 'new', alpha=0, depth=2) > 0", "unknown metric 'roh'. Did you mean 'rho'"),
        ("mean('rho', 'nwe', alpha=0, depth=2) > 0", "unknown arm 'nwe'. Did you mean 'new'"),
        ("mean('rho', 'new', alpha=0, dept=2) > 0", "unknown grid key 'dept'. Did you mean"),
        ("mean('rho', 'new', alpha=0, depth=3) > 0", "unknown value of depth, 3. Known: 2, 4, 8"),
        ("mean('rho', 'new', alpha=True, depth=2) > 0", "unknown value of alpha, True"),
        ("mean('rho', 'new', alpha=0) > 0", "does not say which depth"),
        ("mean('rho', alpha=0, depth=2) > 0", "needs an arm"),
        ("every('dept', mean('rho', 'new', alpha=0) > 0)", "unknown dimension 'dept'"),
        ("every('depth', mean('rho', 'new', alpha=0, depth=2) > 0)", "bound by a quantifier and"),
        ("every('depth', every('depth', mean('rho', 'new', alpha=0) > 0))", "bound twice"),
        ("every('arm', mean('rho', 'new', alpha=0, depth=2) > 0)", "depends on 'arm'"),
        ("every('seed', mean('rho', 'new', alpha=0, depth=2) > 0)", "takes all seeds"),
        ("every('depth', 1 > 0)", "depends on 'depth'"),
        ("monotone('rho', 'new', 'arm', direction='up', alpha=0)", "unknown grid key 'arm'"),
        ("monotone('rho', 'new', 'depth', direction='up', alpha=0, depth=2)", "cannot be fixed"),
        ("every('depth', monotone('rho', 'new', 'depth', direction='up', alpha=0))", "bound"),
    ],
)
def test_check_names_what_does_not_fit_the_study(text, says):
    """Metrics, arms, dimensions and cells are checked before anything runs, and again after."""
    with pytest.raises(CriterionError) as raised:
        check(text, arms=CELLS.arms, grid=CELLS.grid, metrics=CELLS.metrics)
    assert says in str(raised.value)
    with pytest.raises(CriterionError):
        answer(text, CELLS)


def test_check_takes_unknown_metrics_as_they_come():
    """Where metrics are not known yet, any name passes; a grid key may not be called seed."""
    check("mean('later', 'new') > 0", arms=("new",), grid={})
    check("mean('later', 'new') > 0", arms=("new",), grid={}, metrics=frozenset())
    with pytest.raises(CriterionError, match="Rename the key"):
        check("mean('later', 'new') > 0", arms=("new",), grid={"seed": [1, 2]})
    with pytest.raises(CriterionError, match="one value only"):
        check("monotone('m', 'new', 'd', direction='up')", arms=("new",), grid={"d": [1]})


def test_reading_a_study_needs_no_scipy():
    """`parse` and `check` are in modules that import neither numpy nor scipy."""
    source = "import sys, assay.core.criterion; sys.exit('scipy' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


# ---- Three values ----------------------------------------------------------------------------


def truth(answer, score=0.0, *, statistical=True):
    shown = Estimate(Interval(0, 0, score, 1), "", statistical=statistical)
    return Truth(answer, shown, score, statistical, (answer,))


@pytest.mark.parametrize("a", ANSWERS)
@pytest.mark.parametrize("b", ANSWERS)
def test_kleene(a, b):
    """Kleene's tables: and = the smaller, or = the larger in no < open < yes; not mirrors."""
    rank = ANSWERS.index
    parts = [truth(a), truth(b)]
    assert all_of(lambda _: parts, 1).answer == ANSWERS[min(rank(a), rank(b))]
    assert any_of(lambda _: parts, 1).answer == ANSWERS[max(rank(a), rank(b))]
    assert flip(truth(a)).answer == ANSWERS[2 - rank(a)]
    assert flip(flip(truth(a))) == truth(a)


def test_kleene_in_the_language():
    """The same tables for written criteria; an open part is a mean beside a failed run."""
    holed = Table({("acc", "new"): [0.9, None, 0.8, 0.7]})
    part = {"yes": "1 > 0", "no": "0 > 1", "open": "mean('acc', 'new') > 0"}
    for a in ANSWERS:
        for b in ANSWERS:
            low, high = sorted((a, b), key=ANSWERS.index)
            assert answer(f"{part[a]} and {part[b]}", holed) == low
            assert answer(f"{part[a]} or {part[b]}", holed) == high
    assert answer(f"not {part['open']}", holed) == "open"


bounds = st.tuples(st.integers(-5, 5), st.integers(-5, 5)).map(sorted)


@given(bounds, bounds, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
@settings(max_examples=400)
def test_a_comparison_is_about_whole_intervals(x, y, symbol):
    """Yes if every pair of points satisfies it, no if none does, else open (ends on a grid)."""
    a, b = (Estimate(Interval(*limits, sum(limits) / 2, 3), "") for limits in (x, y))
    points = [[low, high, (low + high) / 2, low + 1e-3 * (high > low)] for low, high in (x, y)]
    shared = max(x[0], y[0])
    if shared <= min(x[1], y[1]):
        points = [[*p, shared] for p in points]
    python = {
        "<": lambda p, q: p < q, "<=": lambda p, q: p <= q, ">": lambda p, q: p > q,
        ">=": lambda p, q: p >= q, "==": lambda p, q: p == q, "!=": lambda p, q: p != q,
    }  # fmt: skip
    found = {python[symbol](p, q) for p in points[0] for q in points[1]}
    expected = {frozenset({True}): "yes", frozenset({False}): "no"}.get(frozenset(found), "open")
    assert compare(symbol, a, b).answer == expected


values = st.lists(
    st.one_of(st.floats(-2, 2), st.sampled_from([None, "absent", 0.5, math.nan])),
    min_size=4,
    max_size=4,
)
CRITERIA = [
    "mean('acc', 'new') > 0.1",
    "std('acc', 'new') < 0.5 or mean('acc', 'base') > 0",
    "diff('acc', 'new', 'base') > 0",
    "not diff('acc', 'new', 'base') > 0 and rate('acc', 'new', above=0) > 0.5",
    "ratio('acc', 'new', 'base') > 1",
    "wins('acc', 'new', 'base') >= 0.5",
    "rate_diff('acc', 'new', 'base', at_least=0) > 0",
    "any('arm', rate('acc', at_least=0.5) > 0.5)",
    "every('arm', mean('acc') < 0.5)",
    "max('arm', mean('acc')) - min('arm', mean('acc')) < 1",
    "-1 < mean('acc', 'new') / 2 < 1 or within(std('acc', 'base'), 0, 1)",
    "any('seed', value('acc', 'new') >= 0.5)",
]


@given(values, values, st.sampled_from(CRITERIA))
@settings(max_examples=400, deadline=None)
def test_more_confidence_never_decides_more(new, base, text):
    """Raising the confidence may open an answer; it never decides one or turns it round."""
    evidence = Table({("acc", "new"): new, ("acc", "base"): base})
    found = [answer(text, evidence, confidence=c) for c in CONFIDENCES]
    for less, more in itertools.pairwise(found):
        assert more in (less, "open")


@given(values, values, st.sampled_from(CRITERIA[:-1]))
@settings(max_examples=200, deadline=None)
def test_more_assumed_seeds_never_open_an_answer(new, base, text):
    """With the same estimates and spreads, more seeds keep a decision."""
    evidence = Table({("acc", "new"): new, ("acc", "base"): base})
    found = [answer(text, evidence, assumed_n=n) for n in (4, 5, 9, 30, 1_000, 100_000)]
    for few, many in itertools.pairwise(found):
        assert few in (many, "open")


# ---- Functions -------------------------------------------------------------------------------


def test_diff_is_paired_where_seeds_are_shared():
    """What the seed does to both arms cancels: decided with pairs, open without."""
    noise = [0.0, 5.0, -3.0, 9.0]
    new = {s: x + 0.1 + 0.001 * i for i, (s, x) in enumerate(zip(SEEDS, noise, strict=True))}
    base = dict(zip(SEEDS, noise, strict=True))
    text = parse("diff('acc', 'new', 'base') > 0")
    found = evaluate(text, Table({("acc", "new"): new, ("acc", "base"): base}))
    assert (found.answer, found.n, found.how) == ("yes", 4, "paired t over 4 seeds")
    other = {f"1{s}": v for s, v in base.items()}
    found = evaluate(text, Table({("acc", "new"): new, ("acc", "base"): other}))
    expected = welch_difference(list(new.values()), list(other.values()))
    assert (found.answer, found.low, found.high) == ("open", expected.low, expected.high)
    assert "Welch" in found.how


def test_pairs_are_by_seed_not_by_position():
    """Seeds in another order, or one more in one arm, pair by their label; the rest is named."""
    new = {"43": 1.1, "44": 2.1, "45": 3.2}
    base = {"45": 3.0, "42": 99.0, "44": 2.0, "43": 1.0}
    found = evaluate(
        parse("diff('acc', 'new', 'base') > 0"), Table({("acc", "new"): new, ("acc", "base"): base})
    )
    assert found.n == 3
    assert found.estimate == pytest.approx(0.4 / 3)
    assert any("one arm only" in reason and "42" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("word", "hits"), [("at_least", 2), ("at_most", 3), ("above", 1), ("below", 2)]
)
def test_thresholds_of_a_rate(word, hits):
    """`at_least` and `at_most` take in the threshold itself, `above` and `below` do not."""
    table = Table({("acc", "new"): [0.1, 0.2, 0.5, 0.9]})
    found = evaluate(parse(f"rate('acc', 'new', {word}=0.5) > 0"), table)
    assert found.estimate == hits / 4


def test_a_tie_is_no_win():
    """`wins` counts seeds where a > b; a tie stays in n."""
    table = Table({("acc", "new"): [1.0] * 4, ("acc", "base"): [1.0, 0.0, 0.0, 0.0]})
    found = evaluate(parse("wins('acc', 'new', 'base') > 0"), table)
    assert (found.estimate, found.n, found.how) == (0.75, 4, "Wilson, 3 of 4 pairs")


def test_rates_pair_or_not():
    """Shared seeds use the paired interval; other seeds Newcombe's for independent rates."""
    hits, misses = [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]
    text = parse("rate_diff('acc', 'new', 'base', at_least=0.99) > 0")
    paired = evaluate(text, Table({("acc", "new"): hits, ("acc", "base"): misses}))
    assert "paired Newcombe over 4" in paired.how
    apart = {f"9{s}": v for s, v in zip(SEEDS, misses, strict=True)}
    alone = evaluate(text, Table({("acc", "new"): hits, ("acc", "base"): apart}))
    expected = newcombe_difference(3, 4, 1, 4)
    assert (alone.low, alone.high) == (expected.low, expected.high)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_a_failed_run_never_satisfies(bad):
    """A failed or non-finite run is a miss for rates, and leaves everything else open, named."""
    holed = Table({("acc", "new"): [1.0, 1.0, bad, 1.0], ("acc", "base"): [0.0] * 4})
    found = evaluate(parse("rate('acc', 'new', above=-9) > 0.99"), holed)
    assert (found.estimate, found.n) == (0.75, 4)
    for low in ("at_least=-1e30", "below=1e30", "at_most=1e30"):
        assert evaluate(parse(f"rate('acc', 'new', {low}) > 0"), holed).estimate == 0.75
    for text in (
        "mean('acc', 'new')", "std('acc', 'new')", "diff('acc', 'new', 'base')",
        "ratio('acc', 'base', 'new')", "wins('acc', 'new', 'base')", "value('acc', 'new')",
        "min('arm', mean('acc'))",
    ):  # fmt: skip
        for comparison in ("> -1e30", "< 1e30", "!= 7"):
            found = evaluate(parse(f"{text} {comparison}"), holed)
            assert found.answer == "open", text
            assert any("44" in reason for reason in found.reasons), text
    assert answer("any('seed', value('acc', 'new') >= 1)", holed) == "yes"
    assert answer("every('seed', value('acc', 'new') >= 1)", holed) == "open"
    assert answer("count('acc', 'new') == 3", holed) == "yes"


def test_value_needs_one_value():
    """`value` is exact: equal in all runs, or at a bound seed; else open, and it says why."""
    table = Table({("n", "new"): [7, 7, 7, 7], ("n", "base"): [7, 8, 7, "absent"]})
    assert answer("value('n', 'new') == 7", table) == "yes"
    assert answer("value('n', 'new') < 7", table) == "no"
    found = evaluate(parse("value('n', 'base') >= 7"), table)
    assert found.answer == "open"
    assert any("differs between seeds (7 to 8)" in reason for reason in found.reasons)
    assert not found.is_statistical
    found = evaluate(parse("every('seed', value('n', 'base') >= 7)"), table)
    assert (found.answer, found.at) == ("open", "seed=45")


def test_quantifiers_bind_grid_arm_and_seed():
    """Each binds its dimension; the place of the decisive comparison is reported."""
    assert answer("every('depth', diff('rho', 'new', 'base', alpha=1) > 0)", CELLS) == "yes"
    assert answer("every('alpha', diff('rho', 'new', 'base', depth=2) > 0)", CELLS) == "no"
    assert answer("any('alpha', diff('rho', 'new', 'base', depth=2) > 0)", CELLS) == "yes"
    found = evaluate(
        parse("any('arm', any('seed', value('rho', alpha=1.0, depth=8) > 1.0))"), CELLS
    )
    assert (found.answer, found.at) == ("yes", "arm=new, seed=45")
    nested = "every('depth', every('alpha', diff('rho', 'new', 'base') >= 0))"
    assert answer(nested, CELLS) == "yes"
    assert answer("monotone('rho', 'new', 'depth', direction='up', alpha=1)", CELLS) == "yes"
    assert answer("monotone('rho', 'new', 'depth', direction='down', alpha=1)", CELLS) == "no"
    assert answer("0.77 < max('depth', mean('rho', 'base', alpha=0)) < 0.86", CELLS) == "yes"
    assert answer("min('depth', mean('rho', 'base', alpha=0)) > 0.3", CELLS) == "no"


def test_a_dimension_with_one_value_is_bound_to_it():
    """A grid key with a single value need not be named; a dotted key is written with __."""
    table = Table({("m", "new", 7, 1): [1.0, 1.1, 1.2, 0.9]}, grid={"model.width": (7,), "d": (1,)})
    assert answer("mean('m', 'new') > 0", table) == "yes"
    assert answer("mean('m', 'new', model__width=7) > 0", table) == "yes"


def test_some_cell_of_many_needs_bonferroni():
    """One of four cells at p between 0.0125 and 0.05 decides `diff` alone, but not `any`."""
    grid = {"k": (1, 2, 3, 4)}
    data = {("m", "base", k): [0.0] * 4 for k in grid["k"]}
    data |= {("m", "new", k): [-1.0, 1.0, -1.1, 1.1] for k in grid["k"]}
    data["m", "new", 3] = [1.0, 1.5, 0.4, 1.9]
    table = Table(data, grid=grid)
    assert answer("diff('m', 'new', 'base', k=3) > 0", table) == "yes"
    assert answer("any('k', diff('m', 'new', 'base') > 0)", table) == "open"
    assert answer("max('k', diff('m', 'new', 'base')) > 0", table) == "open"
    assert answer("any('k', diff('m', 'new', 'base') > 0)", table, confidence=0.8) == "yes"
    found = evaluate(parse("every('k', not diff('m', 'new', 'base') > 0)"), table)
    assert found.answer == "open"


def test_any_over_equal_cells_keeps_its_error_rate():
    """Four cells without a difference: `any(diff > 0)` is yes in at most 2.5 % of 1,500 studies.

    Expected 2.5 % (2.5 %/4 each, independent); standard error 0.4 %; a right method exceeds
    4.1 % with chance 1e-4. Uncorrected it would be 9.6 %.
    """
    rng, grid = np.random.default_rng(8), {"k": (1, 2, 3, 4)}
    criterion = parse("any('k', diff('m', 'new', 'base') > 0)")
    wrong = 0
    for _ in range(1_500):
        data = {
            ("m", arm, k): rng.normal(size=4).tolist() for arm in ("new", "base") for k in grid["k"]
        }
        wrong += evaluate(criterion, Table(data, grid=grid)).answer == "yes"
    assert wrong / 1_500 < 0.041


def test_arithmetic_is_conservative():
    """A difference of means is at least as wide as the paired difference; 0 / 0 decides nothing."""
    apart = evaluate(parse("mean('acc', 'new') - mean('acc', 'base') > 0"), ACC)
    paired = evaluate(parse("diff('acc', 'new', 'base') > 0"), ACC)
    assert apart.estimate == pytest.approx(paired.estimate)
    assert apart.low <= paired.low
    assert apart.high >= paired.high
    assert answer("1 / (value('z', 'new') - value('z', 'new')) > -1", ZERO) == "open"
    spans = Table({("w", "new"): [-1.0, 1.0, 0.5, -0.2]})
    for text in ("1 / mean('w', 'new') < 1e6", "1 / mean('w', 'new') > -1e6"):
        assert answer(text, spans) == "open"
    assert answer("value('z', 'new') / 2 + 3 * 2 - -1 == 7", ZERO) == "yes"
    assert answer("mean('z', 'base') * 0 == 0", ZERO) == "open"
    assert (
        answer(
            "1e30 * 1e30 * 1e30 * 1e30 * 1e30 * 1e30 * 1e30 * 1e30 * 1e30 * 1e30 * 1e30 > 0", ZERO
        )
        == "open"
    )


ZERO = Table({("z", "new"): [0.0] * 4, ("z", "base"): [None, 1.0]})


def test_nested_logic_is_evaluated_once():
    """`and` and `or` 24 deep answer at once: parts are remembered, not evaluated 2^24 times."""
    text = "mean('acc', 'new') > 0.5"
    for i in range(24):
        text = f"(diff('acc','new','base') > 0.{i} {'or' if i % 2 else 'and'} {text})"
    assert answer(text) in ANSWERS


def test_seeds_not_run_are_named():
    """A planned seed without a run is no failure; the answer says that it is missing."""
    found = evaluate(parse("mean('acc', 'new') > 0"), Table({("acc", "new"): [0.9, 0.8, 0.91]}))
    assert found.answer == "yes"
    assert any("1 of 4 seeds not run (seed 45)" in reason for reason in found.reasons)


def test_every_node_is_walked():
    """`nodes()` reaches each function of a tree, so that none escapes the family of Holm."""
    tree = parse("not (1 + value('a', 'b') > 0 or every('arm', -mean('a') > 0))")
    assert tree.is_statistical
    assert not parse("value('a', 'b') > 0 and count('a', 'b') > 1").is_statistical
    assert sum(1 for _ in tree.nodes()) == 13
    assert children(tree.tree)
