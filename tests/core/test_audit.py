"""Audits: each replays the defect of a source log, and is silent about its correct twin."""

import math
import re

import pytest
from lab import SCORE, Project, add_run, edit

from assay.core.audit import CHECKS
from assay.core.plan import expand
from assay.core.section import study_section
from assay.core.verdict import judge_study

ENV = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
GOOD = {"a": [0.1, 0.2, 0.35], "b": [0.80, 0.91, 0.99]}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "p", environment=ENV)


def judge(project):
    with project.index() as index:
        return judge_study(project.study, index, project.events())


def audits(project):
    return {finding.kind: finding for finding in judge(project).audits}


def claim(project, criterion):
    """The study with another criterion."""
    project.write(re.sub(r"criterion = '.*'", f"criterion = '{criterion}'", project.text))


def fill(project, summaries=None, series=None, **more):
    """Runs of both arms: `summaries` and `series` are functions of arm and number of the seed."""
    for arm in ("a", "b"):
        for i, planned in enumerate(project.plan(arm)):
            add_run(
                project.runs,
                planned,
                summary=summaries(arm, i) if summaries else {SCORE: GOOD[arm][i]},
                series=series(arm, i) if series else None,
                **(more.get(arm) or {}),
            )


def test_honest_runs_are_found_nothing(project):
    """Curves that rise, seeds that differ, a constant count of parameters: no finding."""
    fill(
        project,
        lambda arm, i: {SCORE: GOOD[arm][i], "model/parameters": 456.0},
        lambda arm, i: {
            "train/loss_nats": [2.0, 1.0, 0.5 + i / 10],
            "train/grad_norm": [1.0, 6.8, 0.2],
            "val/score": [0.1, 0.4, 0.9],
        },
    )
    assert audits(project) == {}
    assert judge(project).headline == "PASS 1"


def test_a_leaked_environment_variable(tmp_path):
    """S0: a variable meant for one arm was set in all of them, and they ran alike."""
    text = edit(
        Project(tmp_path / "x").text,
        ('factor = "method"', 'factor = ["method", "env.FORCE"]'),
        ('[arms.b]\nmethod = "b"', '[arms.b]\nmethod = "b"\nenv = { FORCE = "1" }'),
    )
    project = Project(tmp_path / "p", text, environment=ENV)
    leak = {"env": {"values": {"FORCE": "1"}}}
    fill(project, a=leak, b=leak)
    found = judge(project)
    (finding,) = (f for f in found.audits if f.kind == "leaked-environment")
    assert "FORCE is declared for b only, but was set in a too" in finding.message
    assert found.headline == "INVALID 1"
    twin = Project(tmp_path / "q", text, environment=ENV)
    fill(twin, b=leak)
    assert "leaked-environment" not in audits(twin)


def test_perfect_from_the_first_step_on(project):
    """S0: an agreement of 1.0 at every step, of a thing with itself."""
    fill(project, lambda arm, i: {}, lambda arm, i: {SCORE: [1.0, 1.0, 1.0]})
    found = judge(project)
    assert "always-perfect" in {f.kind for f in found.audits}
    assert found.headline == "INVALID 1"


def test_what_becomes_perfect_is_fine(project):
    """A model that learns to be right has not always been."""
    fill(project, lambda arm, i: {}, lambda arm, i: {SCORE: [0.1 + i / 10, 0.7, 1.0]})
    assert "always-perfect" not in audits(project)


def test_a_metric_that_no_seed_changes(project):
    """Zero at its floor in every seed: the spread of zero decides nothing, a rate may."""
    fill(project, lambda arm, i: {SCORE: 0.0 if arm == "a" else GOOD["b"][i]})
    found = judge(project)
    (finding,) = (f for f in found.audits if f.kind == "constant-metric")
    assert "every seed of a gives the same test/score" in finding.message
    assert found.headline == "INVALID 1"
    claim(project, 'rate_diff("test/score", "b", "a", at_least=0.5) > 0')
    assert audits(project) == {}
    assert "INVALID" not in judge(project).headline
    claim(project, 'value("test/score", "a") == 0')
    assert judge(project).headline == "PASS 1"


def test_values_that_are_no_numbers_are_not_constant(project):
    """They are told as what they are."""
    fill(project, lambda arm, i: {SCORE: float("nan") if arm == "a" else GOOD["b"][i]})
    assert "constant-metric" not in audits(project)


def test_seeds_that_agree_by_accident_in_one_cell_of_two(project):
    """The metric is computed from the run, as the other cell shows: paired differences stand, means do not."""
    paired = 'every("lr", diff("test/score", "b", "a") > 0)'
    text = project.text.replace("[arms.a]", "[grid]\nlr = [0.1, 0.2]\n[arms.a]")
    project.write(re.sub(r"criterion = '.*'", lambda _: f"criterion = '{paired}'", text))
    for arm in ("a", "b"):
        for i, planned in enumerate(project.plan(arm)):
            same = arm == "a" and planned.cell == {"lr": 0.1}
            add_run(project.runs, planned, summary={SCORE: 0.3 if same else GOOD[arm][i % 3]})
    assert judge(project).headline == "PASS 1"
    assert "in one of its cells" in audits(project)["constant-metric"].message
    claim(project, 'every("lr", mean("test/score", "a") < 0.5)')
    assert judge(project).headline == "INVALID 1"


def test_arms_that_differ_in_nothing_that_is_claimed(project):
    """The same values at every seed: told, and the claim stands with it; one seed apart is no news."""
    # Were all metrics the same, the contract would call one arm a no-op.
    fill(
        project, lambda arm, i: {SCORE: GOOD["a"][i], "model/parameters": {"a": 1.0, "b": 2.0}[arm]}
    )
    claim(project, 'diff("test/score", "b", "a") < 0.05')
    finding = audits(project)["identical-arms"]
    assert "a and b give the same test/score to the last bit at every seed" in finding.message
    assert judge(project).headline == "PASS 1"


def test_arms_that_differ_at_one_seed(project):
    """Close, but not the same: no finding."""
    fill(project, lambda arm, i: {SCORE: GOOD["a"][i] + (1e-9 if (arm, i) == ("b", 1) else 0.0)})
    assert "identical-arms" not in audits(project)


def test_a_constant_metric_that_no_claim_reads_is_no_news(project):
    """A number of parameters is meant to be the same."""
    fill(project, lambda arm, i: {SCORE: GOOD[arm][i], "model/parameters": 456.0})
    assert audits(project) == {}


def test_not_a_number_on_the_way(project):
    """The finding names metric and run, and blocks nothing: the final values are counted apart."""
    fill(project, None, lambda arm, i: {
        "train/loss_nats": [2.0, math.nan if (arm, i) == ("b", 1) else 1.5, 1.0 + i]})  # fmt: skip
    finding = audits(project)["non-finite"]
    assert "train/loss_nats was NaN or infinite at some step in b seed 2" in finding.message
    assert judge(project).headline == "PASS 1"


@pytest.mark.parametrize(("peak", "told"), [(947.0, True), (6.81, False)])
def test_a_gradient_that_explodes(project, peak, told):
    """S3: 947 is an explosion, a peak of 6.81 on the way to 0.23 is none."""
    curve = [2.0, peak, 1.0, 0.5, 0.23]
    fill(project, None, lambda arm, i: {"train/grad_norm": curve if i == 0 else [1.0, 2.0, 1.0]})
    found = audits(project)
    assert ("exploded" in found) is told
    if told:
        assert "947" in found["exploded"].message


def test_arms_of_unequal_length(project):
    """S1: 53 to 65 steps in one comparison."""
    fill(
        project,
        lambda arm, i: {},
        lambda arm, i: {SCORE: [0.1 + i / 9] * (54 if arm == "a" else 66)},
    )
    found = judge(project)
    (finding,) = (f for f in found.audits if f.kind == "unequal-steps")
    assert "step 53 in a, 65 in b" in finding.message
    assert found.headline == "INVALID 1"


def test_arms_of_equal_length_are_fine(project):
    """Seeds may stop at different steps, as long as both arms of a seed do."""
    fill(project, lambda arm, i: {}, lambda arm, i: {SCORE: [0.1, 0.2, GOOD[arm][i]] * (i + 1)})
    assert "unequal-steps" not in audits(project)


@pytest.mark.parametrize("name", [SCORE, "test/best_score"])
def test_the_best_epoch_on_the_reported_split(project, name):
    """The summary is the maximum of its own curve in every run: chosen on what it reports."""
    if name != SCORE:
        project.write(f'{project.text}\n[metrics."{name}"]\nsays = "Best."\ngoal = "max"\n')
        claim(project, f'diff("{name}", "b", "a") > 0')
    best = {"a": 0.3, "b": 0.9}
    fill(
        project,
        lambda arm, i: {name: best[arm] + i / 100},
        lambda arm, i: {SCORE: [0.1, best[arm] + i / 100, 0.2]},
    )
    found = judge(project)
    (finding,) = (f for f in found.audits if f.kind == "chosen-on-split")
    assert f"{name} is the best value that {SCORE} ever had" in finding.message
    assert found.headline == "INVALID 1"


def test_a_metric_named_best_that_no_claim_reads_is_no_news(project):
    """Its name says what it is; only a claim on it would be misled."""
    fill(
        project,
        lambda arm, i: {SCORE: GOOD[arm][i], "val/best_score": 0.9},
        lambda arm, i: {"val/score": [0.1, 0.9, 0.2]},
    )
    assert audits(project) == {}


def test_the_last_value_is_no_choice(project):
    """A summary that is the last of a rising curve was not chosen."""
    fill(
        project,
        lambda arm, i: {SCORE: GOOD[arm][i]},
        lambda arm, i: {SCORE: [0.01, 0.02, GOOD[arm][i]]},
    )
    assert audits(project) == {}


CHANCE = '\n[metrics."test/score"]\nsays = "Accuracy."\ngoal = "max"\nchance = {}\n'


@pytest.mark.parametrize("level", ["0.684", '"data/majority"'])
def test_metrics_at_the_level_of_chance(tmp_path, level):
    """S3: an accuracy that is the share of the most frequent class, in all arms."""
    text = Project(tmp_path / "x").text + CHANCE.format(level)
    project = Project(tmp_path / "p", text, environment=ENV)
    fill(project, lambda arm, i: {SCORE: 0.684, "data/majority": 0.684})
    found = judge(project)
    assert "at-chance" in {f.kind for f in found.audits}
    assert found.headline == "INVALID 1"
    twin = Project(tmp_path / "q", text, environment=ENV)
    fill(
        twin, lambda arm, i: {SCORE: 0.684 if arm == "a" else 0.7 + i / 10, "data/majority": 0.684}
    )
    assert "at-chance" not in audits(twin)


def test_training_on_what_is_tested(project):
    """Splits with one fingerprint, and an overlap that the run counted itself."""
    same = {"provenance": {"data": {"digits-train": "f" * 64, "digits-test": "f" * 64}}}
    fill(project, a=same, b=same)
    finding = audits(project)["overlapping-splits"]
    assert "the same fingerprint" in finding.message
    assert judge(project).headline == "INVALID 1"


@pytest.mark.parametrize("shared", [0.0, 12.0])
def test_a_counted_overlap(project, shared):
    """`data/overlap_examples` above zero."""
    fill(project, lambda arm, i: {SCORE: GOOD[arm][i], "data/overlap_examples": shared})
    assert ("overlapping-splits" in audits(project)) is bool(shared)
    assert judge(project).headline == ("INVALID 1" if shared else "PASS 1")


def test_two_values_for_one_quantity(tmp_path):
    """S4: the same configuration computed in two studies, with two results."""
    project = Project(tmp_path, environment=ENV)
    fill(project)
    assert audits(project) == {}
    other = edit(project.text, ('id = "s"', 'id = "t"'))
    (tmp_path / "studies" / "t.toml").write_text(other)
    twin = Project(tmp_path, other, "t", environment=ENV)
    (planned,) = twin.plan("a", "1")
    add_run(twin.runs, planned, summary={SCORE: GOOD["a"][0]})
    assert audits(project) == {}, "the same value twice is one value"
    (planned,) = twin.plan("a", "2")
    add_run(twin.runs, planned, summary={SCORE: 0.12})
    finding = audits(project)["two-values"]
    assert "(study t)" in finding.message
    assert not finding.blocks


def test_two_values_of_other_data_are_no_finding(tmp_path):
    """The file was edited between two studies: the seeds are not to blame."""
    project = Project(tmp_path, environment=ENV)
    fill(project)
    other = edit(project.text, ('id = "s"', 'id = "t"'))
    (tmp_path / "studies" / "t.toml").write_text(other)
    twin = Project(tmp_path, other, "t", environment=ENV)
    (planned,) = twin.plan("a", "2")
    add_run(twin.runs, planned, summary={SCORE: 0.12}, provenance={"data": {"train": "edited"}})
    assert audits(project) == {}


def test_findings_are_in_the_log(project):
    """A finding is told in the section; where there is none, how many checks looked."""
    fill(project)

    def section():
        with project.index() as index:
            return study_section(judge_study(project.study, index, []), index, [], {}, "")

    assert f"- Nothing found by {len(CHECKS)} checks.\n" in section()
    project.fill(a=[0.1, 0.2, 0.35])
    broken = Project(project.root.parent / "z", environment=ENV)
    fill(broken, lambda arm, i: {SCORE: 0.5})
    with broken.index() as index:
        text = study_section(judge_study(broken.study, index, []), index, [], {}, "")
    assert "Constant metric: every seed of a and b" in text.partition("### Audit")[2]


def test_only_claims_that_read_the_metric_are_void(project):
    """A finding about one metric leaves a claim about another alone."""
    other = '\n[claims.other]\nsays = "x."\nphase = "pilot"\ncriterion = \'rate("test/score", "b", at_least=0.5) > 0.1\'\n'
    project.write(project.text + other)
    fill(project, lambda arm, i: {SCORE: GOOD[arm][i] if arm == "b" else 0.0})
    verdicts = {j.name: j.verdict for j in judge(project).judgements}
    assert verdicts["better"] == "INVALID"
    assert verdicts["other"] != "INVALID"


def test_pilot_runs_do_not_void_a_frozen_claim(project):
    """Findings are those of the runs that a claim may rest on."""
    project.write(edit(project.text, ('phase = "pilot"', 'phase = "frozen"')))
    for planned in expand(project.study):
        add_run(project.runs, planned, summary={SCORE: 0.5}, phase="pilot")
    assert judge(project).headline == "UNTESTED 1"


def test_every_check_has_a_name_of_its_own():
    """The finding that a check yields is named as the check."""
    assert len(set(CHECKS.values())) == len(CHECKS) == 11
