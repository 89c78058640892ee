"""The arithmetic of hand-kept logs: every check finds its planted fault, and only that."""

import pytest

from assay.core.reported.audit import audit
from assay.core.reported.document import parse


def rules(text):
    """What an audit says of a log, each as rule and severity."""
    return [(f.rule, f.severity) for f in audit(parse(text))]


def recomputed(text):
    """What the log's own numbers give, for each finding."""
    return [f.recomputed for f in audit(parse(text))]


SENTENCES = [
    # A sound statement, the same with a fault, its rule.
    ("Rank **122 / 128** (95.3%)", "Rank **122 / 128** (95.5%)", "share"),
    ("exact `0.1933` (80,670 errors / 100,000)", "exact `0.1943` (80,670 errors / 100,000)", "share"),
    ("`0.99988` (12/100,000 errors)", "`0.99978` (12/100,000 errors)", "share"),
    ("97.5% (3 wrong of 120)", "98.5% (3 wrong of 120)", "share"),
    ("rank 3 of 5 (60%)", "rank 3 of 5 (50%)", "share"),
    ("LR was 2e-4 (40% of 5e-4)", "LR was 2e-4 (50% of 5e-4)", "share"),
    ("4 of 5 seeds passed", "6 of 5 seeds passed", "count"),
    ("loss 2.31 → 1.98 (-14.3%)", "loss 2.31 → 1.98 (-24.3%)", "change"),
    ("acc from 81.3% to 82.7% (+1.4%)", "acc from 81.3% to 82.7% (+2.4%)", "change"),
    ("0.62 -> 0.65 (+0.03)", "0.62 -> 0.65 (+0.05)", "change"),
    ("80.1 -> 82.4 (+2.3 pp)", "80.1 -> 82.4 (+3.3 pp)", "change"),
    ("12.0 → 4.0 (3.0x)", "12.0 → 4.0 (4.0x)", "change"),
    ("120 ms → 40 ms (3.0x faster)", "120 ms → 40 ms (4.0x faster)", "change"),
    ("80.1 vs 84.3 (+4.2)", "80.1 vs 84.3 (+5.2)", "change"),
    ("45/60 = 0.75 of all", "45/60 = 0.70 of all", "share"),
    ("45/60 passed", "61/60 passed", "count"),
    ("cosine (0.056 vs 0.030, ~2x)", "cosine (0.056 vs 0.030, ~4x)", "change"),
    ("Mean of 0.712, 0.734, 0.698 = 0.715", "Mean of 0.712, 0.734, 0.698 = 0.725", "mean"),
    ("seeds 0.90, 0.80, 0.70, mean 0.80", "seeds 0.90, 0.80, 0.70, mean 0.90", "mean"),
    ("4 × 8 × 16 = 512 tokens", "4 × 8 × 16 = 521 tokens", "equation"),
    ("0.25 + 0.50 = 0.75", "0.25 + 0.50 = 0.85", "equation"),
    ("580117248 / 17 = 34124544", "580117248 / 17 = 34124554", "equation"),
    ("32 x 1k = 32k tokens", "32 x 1k = 64k tokens", "equation"),
]  # fmt: skip


@pytest.mark.parametrize(("sound", "faulty", "rule"), SENTENCES)
def test_sentences(sound, faulty, rule):
    """The statement that holds is silent; the one that does not is an error, in text and cells."""
    table = "| Run | What | n |\n|---|---|---|\n| a | {} | 1 |\n| b | - | 2 |\n"
    for frame in ("{}\n", "- {}\n", "> {}\n", table):
        assert rules(frame.format(sound)) == []
        assert rules(frame.format(faulty)) == [(rule, "error")], frame


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        # 15.94 / 128 would be 12.45 %: the printed count says 12.4.
        ("**15.9 / 128** (12.5%)", "share"),
        ("2/3 (66%)", "share"),
        # 92 % may be what two of three seeds reached.
        ("2/3 seeds (92%)", "share"),
        ("3 of 5 seeds (50%) grokked", "share"),
        ("0.627 → 0.650 (+2.3%)", "change"),
        ("1, 2, 3, mean 2.0 ± 5.0", "spread"),
    ],
)
def test_doubtful_sentences(text, rule):
    """What an unprinted digit, cutting off or another meaning may explain is a note."""
    assert rules(text) == [(rule, "note")]


@pytest.mark.parametrize(
    "text",
    [
        "Phase 6/7 (80% done), fold 2/5 (81%), Epoch 10/50: 91.2%, seed 2/3 (99.1%), batch 12/48 (26%)",
        "500 MB / 2 GB (25%), 7/10 (+10%), 7/10 → 8/10 (+10%), 1/3 (~30%)",
        "Steps 5000 → 10000 (+2.3%), width 64 → 128 (+1.2), from epoch 3 to 5 (+0.5%), depth 2 → 4 (+3.1%)",
        "batch 32 vs 64, 1.5x faster; lr 0.1 → 0.2 (+3.5%); dropout 0.1 -> 0.3 (-0.5%); α = 0.1 → 0.3 (+2%)",
        "lr 1e-3 → 1e-4 (10 epochs), see 3/4 and 2026-01-30 04:41 UTC",
        "signal ~ sqrt(M/d) ~ sqrt(4/256) ~ 0.12; phi(z) = (1-alpha)*z + alpha*tanh(z)",
        "`python train.py --mean 0.1,0.2 = 0.9`",
        "A = (R - 1) / G, d_model=128, n_heads=4, 2 x 7 x 2 cells",
        "LB: [0.20. 0.25. 0.20. 0.25. 0.40] -> 0.763",
        "train 14.19→2.89, eval 3.77→1.43",
        "v1.2 / 3.4 = old; 10.0.0.1 = host; 3 - 1 = 2; 2 + 2 = 4 * 1",
        "<!-- 122 / 128 (95.5%) --> and ~~122 / 128 (95.5%)~~",
    ],
)
def test_what_is_no_statement(text):
    """Dates, commands, formulas, versions and what is struck through are not checked."""
    assert rules(text) == []


LIST = """
- Baseline (0,0,0): 8.10
- Heterogeneous (0,1,1): 7.97 (**1.6% better**)
- Heterogeneous (0,0,1): 8.38 ({}% worse)
"""


def test_per_cent_of_a_listed_baseline():
    """A list with a baseline tells what "better" is measured from."""
    assert rules(LIST.format("3.5")) == []
    assert rules(LIST.format("4.5")) == [("change", "error")]


DELTAS = """
| Task | Old | New | Delta |
|---|---|---|---|
| MRPC F1 | 81.3% | **82.73%** | +1.4% |
| STS-B | 0.627 | **0.650** | {} |
| QQP F1 | 72.5% | **73.35%** | +0.85% |
| MNLI-m | 59.1% | **59.75%** | +0.65% |
| MNLI-mm | 59.34% | **60.90%** (+ep3 pend.) | +1.56% |
"""


def test_delta_of_two_columns():
    """Four rows tell what the column means; the fifth is in another unit."""
    assert rules(DELTAS.format("+0.023")) == []
    (finding,) = audit(parse(DELTAS.format("+2.3%")))
    assert (finding.rule, finding.severity, finding.recomputed) == ("delta", "error", "+0.023")
    assert "times 100" in finding.says


def test_delta_without_an_explanation():
    """Where no rule holds for most rows, nothing is said."""
    assert rules("| a | x | y | Δ |\n|--|--|--|--|\n| p | 1 | 2 | 7 |\n| q | 3 | 4 | 9 |\n") == []


AGAINST = """
| Run | Val Loss | vs Muon | Time |
|-----|---------:|---------|------|
| Muon | 1.5190 | — | 12m |
| a=0.1 | 1.5150 | -0.0040 | 13m |
| a=0.2 | 1.5296 | {} | 13m |
| a=0.3 | 1.5201 | +0.0011 (worse) | 13m |
| a=0.4 | ~1.52 | **~+0.00** | 13m |
"""


def test_delta_against_a_baseline():
    """Rows that imply one baseline; the row that implies another is wrong."""
    assert rules(AGAINST.format("+0.0106")) == []
    assert recomputed(AGAINST.format("+0.0091")) == ["0.0106"]


def test_delta_over_small_tables():
    """Tables of a row or two, one baseline in all of them: what a log of many entries has."""
    one = "## Experiment {0}\n\n| Config | Val Loss | vs Muon |\n|---|---|---|\n| v{0} | {1:.4f} | {2:+.4f} |\n\n"
    rows = [
        (n, 1.5190 + d, d) for n, d in enumerate((-0.0003, 0.013, -0.0044, 0.0023, 0.0291, -0.01))
    ]
    sound = "".join(one.format(*row) for row in rows)
    assert rules(sound) == []
    assert rules(sound + one.format(9, 1.5296, 0.0091)) == [("delta", "error")]
    assert rules("".join(one.format(*row) for row in rows[:3]) + one.format(9, 1.6, 0.0091)) == []


FOLDS = """
| fold | f1 | auc |
|---|---|---|
| 0 | 0.71 | 0.812 |
| 1 | 0.73 | 0.834 |
| 2 | 0.75 | 0.826 |
|---|---|---|
| Mean | 0.73 | {} |

CV: {}
"""


def test_means_of_rows():
    """The row of means, and a score printed under a table of folds."""
    assert rules(FOLDS.format("0.824", "0.730")) == []
    assert rules(FOLDS.format("0.834", "0.730")) == [("mean", "error")]
    assert rules(FOLDS.format("0.824", "0.745")) == [("mean", "note")]


SEEDS = """
| Method | seed 1 | seed 2 | seed 3 | mean |
|---|---|---|---|---|
| ours | 0.91 | 0.93 | 0.95 | {} |
| base | 0.81 | 0.83 | 0.85 | 0.83±0.02 |
"""


OTHER_MEANS = """
| run | acc | steps |
|---|---|---|
| 1 | 0.90 | 1000 |
| 2 | 0.80 | 2000 |
| 3 | 0.10{} | 3000{} |
| {} | {} | 1500 |
"""


@pytest.mark.parametrize(
    ("mark", "label", "value"),
    [
        (" (diverged)", "mean", "0.85"),
        ("*", "mean", "0.85"),
        ("", "mean (excl. 3)", "0.85"),
        ("", "Average (all 12)", "0.85"),
        ("", "weighted mean", "0.75"),
        ("", "average (micro)", "0.85"),
    ],
)
def test_means_of_something_else(mark, label, value):
    """A mean that leaves rows out, or weighs them, is not the plain one."""
    assert rules(OTHER_MEANS.format(mark, mark, label, value)) == []
    assert rules(OTHER_MEANS.format("", "", "mean", value)) != []


def test_deviations_of_rows():
    """A row of standard deviations, and the spread of a mean, under repeats."""
    table = "| fold | acc |\n|--|--|\n| 1 | 0.80 |\n| 2 | 0.90 |\n| 3 | 0.70 |\n| mean | 0.80{} |\n| std | {} |\n"
    assert rules(table.format("", "0.10")) == []
    assert rules(table.format(" ± 0.08", "0.08")) == []
    assert rules(table.format("", "0.30")) == [("spread", "note")]
    assert rules(table.format(" ± 0.30", "0.10")) == [("spread", "note")]


def test_share_columns():
    """Per cents of a column k/n, or of two columns, where the other rows show it."""
    one = "| model | correct | acc |\n|--|--|--|\n| A | 30/60 | 50.0% |\n| B | 45/60 | 75.0% |\n| C | 12/60 | {}% |\n"
    two = "| model | correct | total | acc |\n|--|--|--|--|\n| A | 30 | 60 | 50.0% |\n| B | 45 | 60 | 75.0% |\n| C | 12 | 60 | {}% |\n"
    for table in (one, two):
        assert rules(table.format("20.0")) == []
        assert rules(table.format("30.0")) == [("share", "error")]


def test_groups_with_their_own_baseline():
    """A row that implies the value of another row has that one as its baseline."""
    table = "| model | acc | Δ |\n|--|--|--|\n| base | 60.0 | - |\n| a | 61.0 | +1.0 |\n| b | 62.0 | +2.0 |\n| c | 63.0 | +3.0 |\n| large | 70.0 | |\n| d | 72.0 | {} |\n"
    assert rules(table.format("+2.0")) == []
    assert rules(table.format("+3.0")) == [("delta", "error")]


def test_means_of_columns():
    """The column of means beside the columns of seeds, with its spread."""
    assert rules(SEEDS.format("0.93")) == []
    assert rules(SEEDS.format("0.95")) == [("mean", "error")]
    assert rules(SEEDS.format("0.93±0.20")) == [("spread", "note")]


def test_totals_of_rows():
    """A total of counts, where another column shows that it is one."""
    table = "| part | n | m |\n|--|--|--|\n| a | 10 | 1 |\n| b | 20 | 2 |\n| Total | {} | 3 |\n"
    assert rules(table.format(30)) == []
    assert rules(table.format(31)) == [("total", "error")]


STEPS = "## Entry {}\n- counts: total_all={:,}; steps={}\n\n"


def test_multiples_of_steps():
    """Two entries have one total a step; a third that cannot is wrong."""
    sound = STEPS.format(1, 580117248, 17) + STEPS.format(2, 443619072, 13)
    assert rules(sound) == []
    assert rules(sound + STEPS.format(3, 511868160, 15)) == []
    assert rules(sound + STEPS.format(3, 511868161, 15)) == [("multiple", "error")]


TWICE = """
## Phase 4

| Method | mean Gamma | mean rho | mean nudge |
|---|---|---|---|
| DFA (random) | 0.006 | 0.005 | -0.000022 |
| State Bridge (eT) | **0.287** | **{}** | **-0.000957** |

## Phase 5

| Method | Gamma | rho | nudge |
|---|---|---|---|
| DFA | 0.005 | 0.009 | -0.000006 |
| StateBridge_eT | 0.287 | 0.264 | -0.000957 |
"""


def test_a_row_told_twice():
    """One row in two tables, equal but for a value."""
    assert rules(TWICE.format("0.264")) == []
    (finding,) = audit(parse(TWICE.format("0.246")))
    assert (finding.rule, finding.severity) == ("told-twice", "error")
    assert finding.recomputed.startswith("0.246 (line 7,")


RUNS = """
| Run | Loss | Link |
|---|---|---|
| `first_run_20260117_1535` | MLM 4.089 | [Link](https://example.org/runs/{}) |
| `second_run_20260118_1723` | MLM 4.010 | [Link](https://example.org/runs/second_run_20260118_1723) |
| `third_run_20260119_2040` | MLM {} | [Link](https://example.org/runs/other-3) |
| `fourth_run_20260207_1742` | MLM 3.415 | [Link](https://example.org/runs/fourth_run_20260207_1742) |
| `fifth_run_20260208_1026` | MLM 2.640 | [Link](https://example.org/runs/{}) |
"""


def test_values_and_links_told_twice():
    """A loss of four digits in two rows; a page of another row's run; one page for two rows."""
    assert rules(RUNS.format("other-1", "4.086", "other-5")) == []
    assert rules(RUNS.format("other-1", "4.089", "other-5")) == [("value-twice", "note")]
    assert rules(RUNS.format("fourth_run_20260207_1742", "4.086", "x")) == [("link", "error")]
    assert rules(RUNS.format("other-5", "4.086", "other-5")) == [("link", "note")]


GAIN = """
| Method | L=4 Gamma | L=4 rho |
|---|---|---|
| Scalar CB | 0.34±0.10 | 0.33±0.11 |
| **Vector M=4** | **0.91±0.05** | **0.96±0.01** |
| **Vector M=8** | **0.84±0.10** | **0.92±0.05** |

**Vector field improves over scalar CB by {} on BOTH Gamma and rho.**
"""


def test_gains():
    """A range, or single gains, that the table above does not give."""
    assert rules(GAIN.format("+0.50 to +0.63")) == []
    assert rules(GAIN.format("+0.3 to +0.7")) == [("gain", "note")]
    one = "| M | Gamma | rho |\n|--|--|--|\n| CB | 0.115 | 0.120 |\n| Vec_M4 | 0.364 | 0.426 |\n\nVec beats CB by +{} Gamma, +0.31 rho.\n"
    assert rules(one.format("0.25")) == []
    assert rules(one.format("0.35")) == [("gain", "error")]


BEST = """
| Code | Gamma | val loss |
|---|---|---|
| eT | 0.452+/-0.042 | 1.31 |
| deltaL{} | 0.562+/-0.007 | {} |

Best single config: deltaL + tgw=1.0 -> **Gamma={}**
"""


def test_best():
    """A best configuration in no row; a row marked best that another one beats."""
    assert rules(BEST.format("", "1.22", "0.562")) == []
    assert rules(BEST.format("", "1.22", "0.768")) == [("best", "note")]
    assert rules(BEST.format(" (best)", "1.22", "0.562")) == []
    assert rules(BEST.format(" (best)", "1.42", "0.562")) == [("best", "error")]


def test_best_and_last():
    """The best value of a run is at least as good as its last."""
    table = "| run | best acc | final acc |\n|--|--|--|\n| a | 0.91 | {} |\n| b | 0.93 | 0.93 |\n"
    assert rules(table.format("0.90")) == []
    assert rules(table.format("0.95")) == [("best", "error")]


def test_unequal_budgets():
    """Rows beside a baseline that were trained for other numbers of steps."""
    table = "| Run | Loss | Training Steps |\n|--|--|--|\n| Exp1 (Baseline) | 8.10 | 64 |\n| Exp3 | 8.38 | {} |\n"
    assert rules(table.format(64)) == []
    assert rules(table.format(53)) == [("budget", "note")]


def test_places():
    """A finding names the line, and the column in a file of one line."""
    flat = "# Notes ## A | Run | Share | |---|---| | x | 122 / 128 (95.5%) | | y | 64 / 128 (50%) | ## B text"
    for log in (flat, flat + " which goes on" * 30):
        (finding,) = audit(parse(log))
        assert (finding.line, log[finding.column - 1 :][:9]) == (1, "122 / 128")
    lines = "# Log\n\n- ok\n\n- rank 122/128 (95.5%)\n"
    (finding,) = audit(parse(lines))
    assert (finding.line, finding.column) == (5, 8)
