import time
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from assay.core.bound import RunsElsewhereError, check_text, fixed_text, unbound_numbers
from assay.core.errors import StudyError

D8 = SimpleNamespace(
    arms=("a", "b"),
    grid={},
    seeds=("42", "43"),
    metrics=frozenset({"acc", "n", "bad"}),
    values=lambda metric, arm, cell: {
        ("acc", "a"): {"42": 0.5, "43": 0.6846},
        ("acc", "b"): {"42": 0.285, "43": None},
        ("n", "a"): {"42": 1128.0, "43": 1128.0},
        ("bad", "a"): {"42": float("nan"), "43": None},
    }.get((metric, arm), {}),
)
GRID = SimpleNamespace(
    arms=("a",),
    grid={"alpha": (0.0, 0.5, 1.0), "depth": (2, 4), "one": ("x",)},
    seeds=("42",),
    metrics=frozenset({"rho"}),
    values=lambda metric, arm, cell: {"42": 100 * cell["alpha"] + cell["depth"]},
)


def evidence(name):
    if name not in ("d8", "g"):
        raise StudyError(f"there is no study '{name}'")
    return D8 if name == "d8" else GRID


def check(text):
    return [m.message for m in check_text(text, evidence)]


GOOD = [
    "0.59<!--assay:d8/a acc-->", "0.5923<!--assay:d8/a acc-->", "0.6<!--assay:d8/a acc-->",
    "1<!--assay:d8/a acc-->", "59%<!--assay:d8/a acc-->", "59.2 %<!-- assay:d8/a acc -->",
    "**59.23%**<!--assay:d8/a acc-->", "+0.592<!--assay:d8/a acc-->", "5.923e-1<!--assay:d8/a acc-->",
    "0.59±0.13<!--assay:d8/a acc-->", "0.592 ± 0.131<!--assay:d8/a acc-->",
    "59.2%±13.1%<!--assay:d8/a acc-->", "59.2 +/- 13.1 %<!--assay:d8/a acc-->",
    "0.5<!--assay:d8/a acc seed=42-->", "0.685<!--assay:d8/a acc seed=43-->",
    "0.5<!--assay:d8/a acc stat=min-->", "0.6846<!--assay:d8/a acc stat=max-->",
    "2<!--assay:d8/a acc stat=n-->", "0.1305<!--assay:d8/a acc stat=std-->",
    "1,128<!--assay:d8/a n-->", "1128.0<!--assay:d8/a n-->", "1.1e3<!--assay:d8/a n-->",
    "28.5%<!--assay:d8/b acc-->", "0.28<!--assay:d8/b acc-->", "0.29<!--assay:d8/b acc-->",
    "52<!--assay:g/a rho alpha=0.5 depth=2-->", "104<!--assay:g/a rho depth=4 alpha=1-->",
    "4<!--assay:g/a rho alpha=0.0 depth=4 one=x-->",
    "0.59<!--assay:d8/a acc--> and 0.685<!--assay:d8/a acc seed=43-->",
    "no number <!--assay:begin d8--> here", "<!--assay:end d8 00-->",
    "`59` without a mark, and <!-- a comment -->",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_numbers_that_hold(text):
    """A number holds if it is the value rounded to the digits that are written."""
    assert check(text) == []


BAD = {
    "0.60<!--assay:d8/a acc-->": "mean is 0.5923 now",
    "0.58<!--assay:d8/a acc-->": "mean is 0.5923 now",
    "0<!--assay:d8/a acc-->": "mean is 0.5923 now",
    "-0.59<!--assay:d8/a acc-->": "mean is 0.5923 now",
    "0.59%<!--assay:d8/a acc-->": "mean is 59.23% now",
    "59<!--assay:d8/a acc-->": "mean is 0.5923 now",
    "0.59±0.14<!--assay:d8/a acc-->": "std is 0.1305",
    "0.6<!--assay:d8/a acc seed=43-->": "mean is 0.6846 now",
    "0.27<!--assay:d8/b acc-->": "mean is 0.285 now",
    "0.30<!--assay:d8/b acc-->": "mean is 0.285 now",
    "0.3±0.1<!--assay:d8/b acc-->": "needs at least two seeds",
    "0.5<!--assay:d9/a acc-->": "there is no study 'd9'",
    "0.5<!--assay:d8/z acc-->": "no arm 'z', only a, b",
    "0.5<!--assay:d8/a ac-->": "unknown metric 'ac'. Did you mean 'acc'",
    "0.5<!--assay:d8/a acc seed=44-->": "no seed 44, only 42, 43",
    "0.5<!--assay:d8/b acc seed=43-->": "no run that counts has this value",
    "0.5<!--assay:d8/a bad-->": "no run that counts has this value",
    "0.5<!--assay:d8/a acc stat=median-->": "stat must be one of",
    "0.5<!--assay:d8/a acc width=3-->": "unknown setting width",
    "0.5<!--assay:d8/a-->": "a binding is assay:STUDY/ARM METRIC",
    "0.5<!--assay:-->": "a binding is assay:STUDY/ARM METRIC",
    "52<!--assay:g/a rho alpha=0.5-->": "say depth=…, one of 2, 4",
    "52<!--assay:g/a rho alpha=0.7 depth=2-->": "say alpha=…, one of 0.0, 0.5, 1.0",
    "52<!--assay:g/a rho alpha=True depth=2-->": "say alpha=…",
    "text<!--assay:d8/a acc-->": "without a number right before it",
    "0.59 on<!--assay:d8/a acc-->": "without a number right before it",
    "v0.59<!--assay:d8/a acc-->": "without a number right before it",
    "<!--assay:d8/a acc-->": "without a number right before it",
    "0.59<!--assay:d8/a acc": "does not end",
    "0.59<!--assay:d8/a acc--><!--assay:d8/a acc-->": "without a number right before it",
    "1e999999999<!--assay:d8/a acc-->": "now",
    "1e-999999999<!--assay:d8/a acc-->": "cannot be compared",
}


@pytest.mark.parametrize("text", BAD)
def test_numbers_that_do_not_hold(text):
    """What does not hold is told with the value that it has now, or the rule it breaks."""
    messages = check(text)
    assert len(messages) == 1
    assert BAD[text] in messages[0]


def test_line_is_named():
    """A mismatch stands at its line."""
    found = check_text("a\nb\n0.7<!--assay:d8/a acc-->\n", evidence)
    assert [m.line for m in found] == [3]


def test_fenced_code_is_not_prose():
    """An example inside a fence binds nothing; after the fence prose goes on."""
    wrong = "0.7<!--assay:d8/a acc-->"
    assert check(f"```\n{wrong}\n```") == []
    assert check(f"~~~~ md\n{wrong}\n~~~\n{wrong}\n~~~~\n{wrong}\n") == check(wrong)


@settings(max_examples=60)
@given(st.integers(0, 6), st.floats(-1e6, 1e6, allow_subnormal=False))
@example(1, 0.15)  # printed as 0.1
def test_any_correct_rounding_holds(digits, value):
    """Python's own rounding of any value, to any number of digits, is accepted."""
    study = SimpleNamespace(
        arms=("a",), grid={}, seeds=("1",), metrics={"m"}, values=lambda *_: {"1": value}
    )
    assert not check_text(f"{value:.{digits}f}<!--assay:s/a m-->", lambda name: study)
    assert not check_text(f"{value:.{digits}%}<!--assay:s/a m-->", lambda name: study)
    shifted = f"{value + 2 * 10.0**-digits:.{digits}f}"
    assert check_text(f"{shifted}<!--assay:s/a m-->", lambda name: study)


@pytest.mark.parametrize(
    "line",
    ["9" * 1_000_000, "1,1" * 300_000 + "<!--assay:d8/a acc-->", "<!--assay:" * 100_000,
     "1<!--assay:d8/a acc" * 50_000, "9 ± " * 250_000 + "<!--assay:", "<!-- " * 200_000 + "assay:",
     "assay:" + " " * 1_000_000, "-->" * 300_000 + "1<!--assay:d8/a x-->" * 3_000],
    ids=range(8),
)  # fmt: skip
def test_a_line_of_a_megabyte_is_linear(line):
    """No line takes more than a moment: a check is linear in the length."""
    began = time.process_time()
    check(line)
    assert time.process_time() - began < 3.0


pieces = st.lists(
    st.sampled_from(
        ["<!--", "assay:", "-->", "d8/a", "g/a", " acc", " rho", "1", "0.59", "±", "%", "=", "seed",
         "stat", "alpha=0.5", " depth=2", "-", ",", "e9", "e-9999", "\n", "```", " ", "begin ", "—"]
    )
    | st.text(max_size=4),
    max_size=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(pieces)
def test_no_text_crashes_the_check(parts):
    """Any text gives a list of mismatches, each at one of its lines."""
    text = "".join(parts)
    found = check_text(text, evidence)
    assert all(1 <= m.line <= text.count("\n") + 1 for m in found)


UNBOUND = {
    "It reached 0.664 on 8 seeds.": ["0.664", "8"],
    "0.59<!--assay:d8/a acc--> of **0.5 ± 0.1 %**<!--assay:d8/a acc--> and 3": ["3"],
    "0.664±0.477 [6]": ["0.664±0.477", "6"],
    "-0.5, 1e-3, 1,128 and 10-digit": ["-0.5", "1e-3", "1,128", "10"],
    "| a | 0.5 ± 0.2 | 3 |": ["0.5 ± 0.2", "3"],
    "`0.5`, ``a ` 3`` and `code\nover 5 lines` 6": ["6"],
    "an open ` 5 and <!-- 6": ["5", "6"],
    "```\n0.5\n```\n1 x": ["1"],
    "a ```x``` 5\n6": ["5", "6"],
    "````\n```\n0.5\n````\n~~~ 1\n2\n~~~\n": [],
    "## 3.1 At 0.99\n\n1. one\n2. two 5\n3. x": ["0.99", "5"],
    "a\n12. Next": ["12."],
    "a\n1. b\n2. c": [],
    '[x 3](http://a/5?x=9) https://b/77 <a href="8">9</a>': ["3", "9"],
    "[^1] and [12]\n\n[^1]: x\n[2]: y": ["12"],
    "2026-11-21, 2026-11-21 12:30, 21 November 2026, Nov 21, 2026, May 2026": [],
    "Mark 5, 2026 and 2026-13": ["5", "2026", "2026", "13"],
    "d8, v0.5, GPT-2, S2": [],
    "<!-- 5\n\n6 --> 7, <!-- 8 --> 9": ["7", "9"],
}


@pytest.mark.parametrize("text", UNBOUND)
def test_unbound_numbers_of_prose(text):
    """A number of prose without a binding is counted; code, addresses, dates and names are not."""
    found = [number.rstrip(",") for number in unbound_numbers(text)]
    assert found == UNBOUND[text]


@pytest.mark.parametrize("text", GOOD)
def test_a_number_that_holds_is_bound(text):
    """What a check can hold against a run is not counted as unbound."""
    assert unbound_numbers(text) == []


@pytest.mark.parametrize(
    "unit", ["`", "``a`", "<!--", "](", "[^1", "1", "1.", "<a ", "2026-", "Nov ", "1,", "± 1",
             "0.5<!--assay:x ", "http://", "` <!-- ", "`a``b```c", "\n1. ", "May 1, "]
)  # fmt: skip
def test_counting_is_linear(unit):
    """No text makes the count slow: 200,000 characters take well below a second."""
    text = unit * (200_000 // len(unit))
    began = time.process_time()
    unbound_numbers(text)
    assert time.process_time() - began < 2.0


@settings(max_examples=300, deadline=None)
@given(pieces)
def test_no_text_crashes_the_count(parts):
    """Any text has a list of unbound numbers, each with a digit."""
    assert all(any(c.isdigit() for c in number) for number in unbound_numbers("".join(parts)))


def test_runs_that_are_elsewhere_are_no_mismatch():
    """A number whose runs are not on this machine is told as not compared."""

    def absent(name):
        raise RunsElsewhereError("not here")

    (found,) = check_text("0.5<!--assay:d8/a acc-->", absent)
    assert not found.compared
    assert "not here" in found.message


FIXED = {
    "0.60<!--assay:d8/a acc-->": "0.59<!--assay:d8/a acc-->",
    "**61 %**<!--assay:d8/a acc-->": "**59 %**<!--assay:d8/a acc-->",
    "a 0.60 ± 0.2<!--assay:d8/a acc--> b": "a 0.59 ± 0.1<!--assay:d8/a acc--> b",
    "0.59±0.14<!--assay:d8/a acc-->": "0.59±0.13<!--assay:d8/a acc-->",
    "+0.1<!--assay:d8/a acc-->": "+0.6<!--assay:d8/a acc-->",
    "1,129<!--assay:d8/a n-->": "1,128<!--assay:d8/a n-->",
    "9.9e-1<!--assay:d8/a acc-->": "5.9e-1<!--assay:d8/a acc-->",
    "12<!--assay:g/a rho alpha=1 depth=4-->!": "104<!--assay:g/a rho alpha=1 depth=4-->!",
    "1<!--assay:d8/a acc stat=n--> and 7<!--assay:d8/a acc stat=min-->, 0.5<!--assay:d8/a acc seed=42-->":
    "2<!--assay:d8/a acc stat=n--> and 0.5<!--assay:d8/a acc stat=min-->, 0.5<!--assay:d8/a acc seed=42-->",
}  # fmt: skip


@pytest.mark.parametrize("text", FIXED)
def test_numbers_are_rewritten_as_they_were_written(text):
    """With their digits, sign, percent and commas; each change is told with its line."""
    fixed, changed = fixed_text(f"first\n{text}\n", evidence)
    assert fixed == f"first\n{FIXED[text]}\n"
    assert changed
    assert all(line.startswith("line 2: ") for line in changed)
    assert check(fixed) == []
    assert fixed_text(fixed, evidence) == (fixed, [])


@pytest.mark.parametrize(
    "text",
    [
        *GOOD,
        "```\n0.60<!--assay:d8/a acc-->\n```",
        "0.60<!--assay:nowhere/a acc-->",
        "0.60<!--assay:d8/c acc-->",
        "0.60<!--assay:d8/a bad-->",
        "0.3±0.1<!--assay:d8/b acc-->",
        "word<!--assay:d8/a acc-->",
    ],
)
def test_what_holds_or_cannot_be_computed_is_left(text):
    """Nothing but a number that has a value is touched."""
    assert fixed_text(text, evidence) == (text, [])


@settings(max_examples=200, deadline=None)
@given(pieces)
def test_a_fixed_text_has_nothing_left_to_fix(parts):
    """Fixing twice is fixing once, and only numbers before marks change."""
    text = "".join(parts)
    fixed, changed = fixed_text(text, evidence)
    assert fixed_text(fixed, evidence) == (fixed, [])
    assert (fixed == text) == (not changed)
    assert fixed.count("<!--") == text.count("<!--")
