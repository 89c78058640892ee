from types import SimpleNamespace

import pytest
from lab import STUDY, Project, edit, edit_json, run_id

from assay.core.freeze import _lock
from assay.core.ledger import record
from assay.core.verdict import StudyVerdict, check_contract, judge_study

FROZEN = edit(STUDY, ('phase = "pilot"', 'phase = "frozen"'))


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def judge(project):
    with project.index() as index:
        return judge_study(project.study, index, project.events())


def test_pass(project):
    """An arm that is better beyond doubt: PASS, exit code 0."""
    project.fill(a=[0.1, 0.2, 0.3], b=[0.80, 0.91, 0.99])
    result = judge(project)
    assert (result.headline, result.exit_code) == ("PASS 1", 0)


def test_fail(project):
    """An arm that is worse beyond doubt: FAIL, exit code 1."""
    project.fill(b=[0.1, 0.2, 0.3], a=[0.80, 0.91, 0.99])
    result = judge(project)
    assert (result.headline, result.exit_code) == ("FAIL 1", 1)


def test_inconclusive(project):
    """Too few seeds for the spread: INCONCLUSIVE, exit code 5."""
    project.fill(a=[0.1, 0.5, 0.3], b=[0.2, 0.4, 0.9])
    result = judge(project)
    assert (result.headline, result.exit_code) == ("INCONCLUSIVE 1", 5)


def test_untested(project):
    """Fewer runs than the claim asks for: UNTESTED, exit code 5."""
    project.fill(a=[0.1], b=[0.9])
    result = judge(project)
    assert (result.headline, result.exit_code) == ("UNTESTED 1", 5)


def test_no_claims(project):
    """A study without claims has nothing to fail."""
    project.write(STUDY.partition("[claims")[0])
    result = judge(project)
    assert (result.headline, result.exit_code) == ("no claims", 0)


def test_confounded(project):
    """S0's leak: a variable that only one arm has blocks the verdict, by name; exit code 4."""
    project.fill(a=[0.1, 0.2, 0.3])
    for seed, value in ((1, 0.8), (2, 0.91), (3, 0.99)):
        project.add("b", seed, value, env={"values": {"PSYCHE_DONT_SHARE_PREFIX": "1"}})
    result = judge(project)
    assert (result.headline, result.exit_code) == ("INVALID 1", 4)
    (judgement,) = result.judgements
    assert any("PSYCHE_DONT_SHARE_PREFIX" in reason for reason in judgement.reasons)
    assert "confounded" in {f.kind for f in result.contract.findings}


def test_no_op_arm(project):
    """Arms whose results are equal to the last bit did not differ: INVALID."""
    project.fill(a=[0.1, 0.2, 0.3], b=[0.1, 0.2, 0.3])
    result = judge(project)
    assert result.headline == "INVALID 1"
    assert "no-op" in {f.kind for f in result.contract.findings}


def test_a_finding_blocks_only_claims_that_it_touches(project):
    """A confound of arm c leaves a claim about a and b alone."""
    text = edit(STUDY, ("[claims.better]", '[arms.c]\nmethod = "c"\n[claims.better]'))
    project.write(text)
    project.fill(a=[0.1, 0.2, 0.3], b=[0.80, 0.91, 0.99])
    project.add("c", 1, 0.5, provenance={"packages": {"decisive": {"numpy": "1.0"}}})
    result = judge(project)
    assert result.headline == "PASS 1"
    assert "confounded" in {f.kind for f in result.contract.findings}


def test_runs_pair_by_what_they_compute(project):
    """Runs made before a second role got seeds pair with those made after."""
    text = edit(STUDY, ('data = "init"', "data = 0"))
    project.write(text)
    project.fill(a=[0.1, 0.2, 0.3])
    project.write(edit(text, ("data = 0", "data = [0, 1]")))
    for seed, value in ((1, 0.8), (2, 0.91), (3, 0.99)):
        project.add("b", f"data=0,init={seed}", value)
    result = judge(project)
    assert result.contract.num_pairs == 3
    assert result.headline == "PASS 1"


def test_failed_runs_are_no_part_of_the_contract(project):
    """What a failed run spent confounds nothing; the failure itself keeps the claim open."""
    project.fill(a=[0.1, 0.2, 0.3], b=[0.80, 0.91])
    project.add("b", 3, None, status="failed", error="Boom")
    result = judge(project)
    assert result.headline == "INCONCLUSIVE 1"
    assert len(check_realised(project)) == 5


def check_realised(project):
    selection = project.select()
    assert check_contract(project.study, selection, {}) is not None
    return [r for r in selection.counting.values() if r.status == "completed"]


def test_pilot_runs_of_other_code_do_not_block_a_frozen_claim(project):
    """The contract of a claim is checked over the runs of its own phase."""
    project.write(edit(FROZEN, ("[1, 2, 3]", "[1, 2, 3, 4]")))
    values = {"a": [0.1, 0.2, 0.3], "b": [0.80, 0.91, 0.99]}
    for arm, scores in values.items():
        for seed, value in enumerate(scores, start=1):
            project.add(arm, seed, value, phase="frozen")
    old = {"packages": {"decisive": {"numpy": "1.0"}}}
    project.add("a", 4, 0.1, phase="pilot", provenance=old)
    lock(project)
    result = judge(project)
    assert "mixed-versions" in {f.kind for f in result.contract.findings}
    assert result.headline == "PASS 1"


def lock(project, version=1, runs_before=()):
    """Freeze without a repository."""
    body = {
        "version": version, "study_digest": project.study.digest, "commit": "c" * 40,
        "tree_sha256": "t" * 64, "runs_before": list(runs_before),
        "locks": {name: _lock(claim) for name, claim in project.study.claims.items()},
    }  # fmt: skip
    record(project.settings.ledger_dir, "freeze", "s", body)


def fill_frozen(project):
    folders = []
    for arm, scores in {"a": [0.1, 0.2, 0.3], "b": [0.80, 0.91, 0.99]}.items():
        folders += [
            project.add(arm, seed, value, phase="frozen") for seed, value in enumerate(scores, 1)
        ]
    return [run_id(f) for f in folders]


def test_frozen_claim_passes_on_frozen_runs(project):
    """Locked first, run afterwards: PASS."""
    project.write(FROZEN)
    lock(project)
    fill_frozen(project)
    assert judge(project).headline == "PASS 1"


def test_pilot_runs_do_not_test_a_frozen_claim(project):
    """Runs of a lower phase leave a frozen claim UNTESTED."""
    project.write(FROZEN)
    project.fill(a=[0.1, 0.2, 0.3], b=[0.80, 0.91, 0.99])
    assert judge(project).headline == "UNTESTED 1"


@pytest.mark.parametrize(
    "change", [("> 0", "> 0.01"), ('phase = "frozen"', 'phase = "frozen"\nconfidence = 0.9')]
)
def test_claim_changed_after_its_runs_is_invalid(project, change):
    """A criterion edited after freezing is judged on no run that was there before."""
    project.write(FROZEN)
    lock(project)
    runs = fill_frozen(project)
    project.write(edit(FROZEN, change))
    result = judge(project)
    assert result.headline == "INVALID 1"
    assert "the claim changed since version 1" in result.judgements[0].why
    lock(project, version=2, runs_before=runs)
    result = judge(project)
    assert result.headline == "INVALID 1"
    assert "6 of its runs were there before" in result.judgements[0].why


FOUR = edit(FROZEN, ("[1, 2, 3]", "[1, 2, 3, 4]"))
CHANGES = {
    "seed cut": ("[1, 2, 3, 4]", "[1, 2, 3]"),
    "seed added": ("[1, 2, 3, 4]", "[1, 2, 3, 4, 5]"),
    "factor widened": ('factor = "method"', 'factor = ["method", "lr"]'),
    "baseline": ('baseline = "a"', 'baseline = "b"'),
    "budget": ("steps = 100", "steps = 99"),
    "config": ("width = 8", "width = 9"),
    "grid": ("[config]", "[grid]\nalpha = [0.0]\n[config]"),
    "arm": ("[claims.better]", '[arms.c]\nmethod = "c"\n[claims.better]'),
    "other claim": ("[claims.better]", "[claims.other]\nsays = 'x'\ncriterion = "
                    "'mean(\"test/score\", \"a\") > 0'\n[claims.better]"),
    "metrics": ("[claims.better]", '[metrics."test/score"]\nsays = "x"\n[claims.better]'),
    "collect": ("[claims.better]", '[collect]\ncsv = "x.csv"\n[claims.better]'),
    "environment": ("[claims.better]", '[environment]\nLANG = "C"\n[claims.better]'),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_study_changed_after_its_runs_is_invalid(project, name):
    """Nothing in the file that decides can be chosen after the runs; freezing again is no way
    round it."""
    project.write(FOUR)
    lock(project)
    runs = fill_frozen(project)
    runs += [run_id(project.add(arm, 4, 0.5, phase="frozen")) for arm in "ab"]
    before = judge(project)
    assert before.headline == "INCONCLUSIVE 1"
    project.write(edit(FOUR, CHANGES[name]))
    result = judge(project)
    assert result.headline.startswith("INVALID")
    why = next(j for j in result.judgements if j.name == "better").why
    assert "the study file changed since version 1; undo that, or `assay freeze`" in why
    if project.select().counting:
        lock(project, version=2, runs_before=runs)
        assert not judge(project).headline.startswith("PASS")
    project.write(FOUR)


def test_undone_change_and_reported_values_leave_the_freeze(project):
    """The file as it was frozen is frozen; values copied from documents decide nothing."""
    project.write(FROZEN)
    lock(project)
    fill_frozen(project)
    project.write(edit(FROZEN, ("[1, 2, 3]", "[1, 2]")))
    assert judge(project).headline == "INVALID 1"
    reported = '\n[[reported]]\nmetric = "test/score"\narm = "a"\nvalue = 0.5\nsource = "x"\n'
    project.write(FROZEN + reported)
    assert judge(project).headline == "PASS 1"


def test_seed_cut_and_frozen_again_needs_new_runs(project):
    """A second freeze of another file takes over no run that was there."""
    project.write(FOUR)
    lock(project)
    runs = fill_frozen(project)
    project.write(edit(FOUR, CHANGES["seed cut"]))
    lock(project, version=2, runs_before=runs)
    result = judge(project)
    assert result.headline == "INVALID 1"
    assert "6 of its runs were there before" in result.judgements[0].why
    for arm, scores in {"a": [0.1, 0.2, 0.3], "b": [0.80, 0.91, 0.99]}.items():
        for seed, value in enumerate(scores, 1):
            project.add(arm, seed, value, phase="frozen", generation=2)
    assert judge(project).headline == "PASS 1"


def test_frozen_runs_without_a_freeze_support_nothing(project):
    """A lost ledger is told."""
    project.write(FROZEN)
    fill_frozen(project)
    result = judge(project)
    assert result.headline == "INVALID 1"
    assert "the ledger has no freeze" in result.judgements[0].why


def test_pilot_repetition_leaves_a_frozen_verdict(project):
    """`assay run --again` after the code changed makes pilot runs, and no claim UNTESTED."""
    project.write(FROZEN)
    lock(project)
    fill_frozen(project)
    for seed in (1, 2, 3):
        project.add("b", seed, 0.0, generation=2)
    assert judge(project).headline == "PASS 1"


def test_edited_run_changes_no_verdict_quietly(project):
    """Runs whose values were edited after their end are out: the claim is not tested any more."""
    folders = project.fill(a=[0.1, 0.2, 0.3], b=[0.1, 0.2, 0.4])
    for (arm, _), folder in folders.items():
        if arm == "b":
            edit_json(folder / "end.json", summary={"test/score": 0.9})
    assert judge(project).headline == "UNTESTED 1"


def test_unchanged_claim_keeps_its_runs_over_versions(project):
    """A second freeze, of other code, takes no run from a claim that was locked by the first."""
    project.write(FROZEN)
    lock(project)
    runs = fill_frozen(project)
    lock(project, version=2, runs_before=runs)
    assert judge(project).headline == "PASS 1"


def test_headline_counts_in_order():
    """The heading names each verdict with its number, PASS first."""

    class J:
        def __init__(self, verdict):
            self.verdict = verdict

    def verdict(*names):
        return StudyVerdict(
            study=SimpleNamespace(at_scale=""),
            selection=None,
            contract=None,
            judgements=tuple(map(J, names)),
        )

    mixed = verdict("INVALID", "PASS", "FAIL", "PASS")
    assert (mixed.headline, mixed.exit_code) == ("PASS 2, FAIL 1, INVALID 1", 1)
    assert verdict("PASS", "INVALID", "UNTESTED").exit_code == 4
    assert verdict("PASS", "UNTESTED").exit_code == 5
