"""Scales of a study: each is a study of its own, and a verdict says at which it was reached."""

import subprocess

import pytest
from lab import STUDY, Project, add_run, edit

from assay.core.errors import StudyError
from assay.core.freeze import freeze, unlocked
from assay.core.log import check_log, write_log
from assay.core.plan import expand
from assay.core.section import study_section
from assay.core.study import load_scales, load_study
from assay.core.verdict import judge_study

ENV = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
FULL = """
[scales.full]
says = "the source's 1,000 steps"
seeds = { init = [7, 8], data = 1 }
budget = { steps = 1000 }
config = { lr = 0.5 }
grid = { alpha = [0.0, 1.0] }
"""
BASE = 'scale = "100 of the source\'s 1,000 steps"\n[config]'
LONG = '\n[scales.full]\nsays = "the source\'s 1,000 steps"\nbudget = { steps = 1000 }\n'
LARGE = '[scales.large]\nsays = "more"\nconfig = { width = 64 }\n'
CLAIMLESS = STUDY.partition("[claims")[0]


def write(folder, text):
    path = folder / "s.toml"
    path.write_text(text, "utf-8")
    return path


def refuse(folder, text):
    """The message for a file that is only read as it is, at no scale."""
    with pytest.raises(StudyError) as caught:
        load_study(write(folder, text))
    assert "\n" not in str(caught.value).strip(), "one paragraph"
    return str(caught.value)


def test_a_scale_replaces_seeds_and_grid_and_merges_budget_and_config(tmp_path):
    """What the scale names is changed, all else is as in the study; the study stays as it is."""
    path = write(tmp_path, CLAIMLESS + FULL)
    base, full = load_study(path), load_study(path, "full")
    assert base.seeds == {"init": (1, 2, 3), "data": "init"}
    assert (base.table.budget, base.config, base.grid) == ({"steps": 100}, {"width": 8}, {})
    assert full.seeds == {"init": (7, 8), "data": (1,)}
    assert full.table.budget == {"steps": 1000}
    assert full.config == {"width": 8, "lr": 0.5}
    assert full.grid == {"alpha": (0.0, 1.0)}
    assert list(full.arms) == list(base.arms)
    (first, *_) = runs = expand(full)
    assert len(runs) == 2 * 2 * 2
    assert (first.config["steps"], first.config["lr"], first.config["width"]) == (1000, 0.5, 8)


def test_budget_is_merged_and_nested_config_too(tmp_path):
    """A scale names only what changes, also inside a table."""
    text = """
[study]
id = "c"
question = "Which?"
seeds = { init = [1] }
budget = { steps = 10, tokens = 5 }
cmd = "python train.py {model.width} {model.depth} {seed.init}"
[config]
model = { width = 8, depth = 2 }
[arms.a]
[scales.full]
says = "wide"
budget = { steps = 20 }
config = { model = { width = 64 } }
"""
    full = load_study(write(tmp_path, text), "full")
    assert full.table.budget == {"steps": 20, "tokens": 5}
    assert full.config == {"model": {"width": 64, "depth": 2}}


def test_a_scaled_study_is_a_study_of_its_own(tmp_path):
    """Id, digest and runs are its own; a scale in the file leaves the study's digest alone."""
    plain = load_study(write(tmp_path, STUDY))
    path = write(tmp_path, STUDY + LONG + LARGE)
    found = load_scales(path)
    assert [study.id for study in found.values()] == ["s", "s.full", "s.large"]
    assert len({study.digest for study in found.values()}) == 3
    assert found[""].digest == plain.digest
    assert {run.study for run in expand(found["full"])} == {"s.full"}
    identities = {name: {run.identity for run in expand(study)} for name, study in found.items()}
    assert not identities[""] & identities["full"]
    alone = load_study(write(tmp_path, STUDY + LONG), "full")
    assert alone.digest == found["full"].digest
    other = load_study(write(tmp_path, STUDY + edit(LONG, ("= 1000", "= 2000"))), "full")
    assert other.digest != found["full"].digest


def test_unknown_scale_is_told_with_those_that_exist(tmp_path):
    """No such scale: the error lists the scales of the file, or says that it has none."""
    with pytest.raises(StudyError, match=r"s\.toml: .*no scale 'ful'\. Scales: full, large\."):
        load_study(write(tmp_path, STUDY + LONG + LARGE), "ful")
    with pytest.raises(StudyError, match=r"no scale 'full'\. .* no \[scales\.NAME\]"):
        load_study(write(tmp_path, STUDY), "full")


FOREIGN = {
    "arms": 'arms = { c = { method = "c" } }',
    "claims": "claims = { x = {} }",
    "factor": 'factor = "lr"',
    "baseline": 'baseline = "b"',
    "phase": 'phase = "debug"',
    "cmd": 'cmd = "true"',
    "reported": "reported = []",
    "seed": "seed = { init = [1] }",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_a_scale_changes_nothing_but_the_scale(tmp_path, key):
    """With other arms, claims or factor it would be another study: refused, with what is allowed."""
    told = refuse(tmp_path, STUDY + LONG + FOREIGN[key])
    for part in ("s.toml [scales.full]", f"'{key}'", "says, seeds, budget, config, grid"):
        assert part in told, told


BROKEN = {
    "no sentence": ('says = "the source\'s 1,000 steps"\n', "", ["'says' is missing"]),
    "empty sentence": ("the source's 1,000 steps", " ", ["says must be a sentence"]),
    "two lines": ("the source's 1,000 steps", "a\\nb", ["says must be a sentence", "one line"]),
    "unknown budget": ("steps = 1000", "epochs = 3", ["budget", "'epochs'", "steps"]),
    "budget of nothing": ("steps = 1000", "steps = 0", ["budget steps", "above 0"]),
    "budget type": ("{ steps = 1000 }", "3", ["budget", "3"]),
    "seeds repeated": (
        "budget =", 'seeds = { init = [1, 1], data = "init" }\nbudget =', ["seeds", "[1, 1]"]
    ),
    "no seeds": ("budget =", "seeds = {}\nbudget =", ["seeds", "empty"]),
    "role missing": ("budget =", "seeds = { init = [1] }\nbudget =", ["reads the roles"]),
    "grid empty": ("budget =", "grid = { alpha = [] }\nbudget =", ["[grid] alpha"]),
    "grid over config": ("budget =", "grid = { width = [1] }\nbudget =", ["width", "[config]"]),
    "grid unbound in a claim": ("budget =", "grid = { alpha = [0, 1] }\nbudget =", ["alpha"]),
    "config over budget": ("budget =", "config = { steps = 5 }\nbudget =", ["steps", "[config]"]),
    "date": ("budget =", "config = { lr = 2026-01-01 }\nbudget =", ["date", "2026-01-01"]),
    "changes nothing": ("steps = 1000", "steps = 100", ["changes nothing"]),
    "bad name": ("[scales.full]", '[scales."a/b"]', ["[scales.a/b]", "name is letters"]),
    "long name": ("scales.full", "scales." + "x" * 79, ["id must be", "at most 80"]),
    "no table": ("[scales.full]", '[scales]\nfull = "x"\n[scales.other]', ["must be a table"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_scale_is_seen_before_it_is_needed(tmp_path, name):
    """A file is refused for any of its scales, by file, scale and rule, whichever is asked for."""
    old, new, words = BROKEN[name]
    told = refuse(tmp_path, STUDY + edit(LONG, (old, new)))
    assert told.startswith("s.toml [scales"), told
    assert all(word in told for word in words), told


def test_the_base_scale_is_a_sentence(tmp_path):
    """`[study] scale` is a sentence too."""
    told = refuse(tmp_path, edit(STUDY, ("[config]", 'scale = ""\n[config]')))
    assert "s.toml [study]" in told
    assert "scale must be a sentence" in told


def test_where_verdicts_were_reached(tmp_path):
    """A study without scales says nothing; any other says its scale, named or not."""
    said = edit(STUDY, ("[config]", BASE))
    assert load_study(write(tmp_path, STUDY)).at_scale == ""
    assert load_study(write(tmp_path, said)).at_scale == "scale: 100 of the source's 1,000 steps"
    found = load_scales(write(tmp_path, STUDY + LONG))
    assert found[""].at_scale == "scale: the base of its file"
    assert found["full"].at_scale == "scale full: the source's 1,000 steps"
    found = load_scales(write(tmp_path, said + LONG))
    assert found["full"].at_scale == "scale full: the source's 1,000 steps"


@pytest.fixture
def project(tmp_path):
    """A study with a base scale and a full one, and runs of the base."""
    made = Project(tmp_path / "p", edit(STUDY, ("[config]", BASE)) + LONG, environment=ENV)
    made.fill(a=[0.1, 0.2, 0.35], b=[0.80, 0.91, 0.99])
    return made


def fill_full(project):
    for run in expand(load_study(project.path, "full")):
        value = (0.9 if run.arm == "a" else 0.1) + int(run.seed_label) / 100
        add_run(project.runs, run, summary={"test/score": value})


def log(project, old=""):
    studies = list(load_scales(project.path).values())
    with project.index() as index:
        return write_log(studies, index, project.events(), project.settings, old, draw=None).text


def judge(project, scale=""):
    with project.index() as index:
        return judge_study(load_study(project.path, scale), index, project.events())


def test_runs_of_one_scale_are_no_evidence_at_another(project):
    """Each scale is judged from its own runs, and its verdict says at which it was reached."""
    base, full = judge(project), judge(project, "full")
    assert base.headline == "PASS 1 (scale: 100 of the source's 1,000 steps)"
    assert full.headline == "UNTESTED 1 (scale full: the source's 1,000 steps)"
    fill_full(project)
    assert judge(project).headline == base.headline
    assert judge(project, "full").headline == "FAIL 1 (scale full: the source's 1,000 steps)"


def test_log_has_a_section_of_a_scale_once_it_has_runs(project):
    """Without runs a scale is only named; with runs it has a section, which holds."""
    text = log(project)
    assert "## s: PASS 1 (scale: 100 of the source's 1,000 steps)\n" in text
    assert "| PASS 1 (scale: 100 of the source's 1,000 steps) |" in text
    assert "- Scale: 100 of the source's 1,000 steps; further scales in its file: `full`" in text
    assert "s.full" not in text
    fill_full(project)
    text = log(project, text)
    assert (
        "| s.full | Is b better than a? | FAIL 1 (scale full: the source's 1,000 steps) |" in text
    )
    assert "## s.full: FAIL 1 (scale full: the source's 1,000 steps)\n" in text
    assert "- Scale full: the source's 1,000 steps\n- Computed by" in text
    assert "Budget: steps = 1,000" in text
    assert "assay run studies/s.toml --scale full\nassay table s.full --seeds" in text
    assert check_log(text, log(project, text)) == []


def test_section_of_a_scale_is_kept_where_its_runs_are_not(project):
    """On a machine without the runs of the scale, its section and verdict stay."""
    fill_full(project)
    text = log(project)
    (project.runs / "s.full").rename(project.root / "elsewhere")
    assert log(project, text) == text


def test_a_study_without_scales_says_nothing_of_them(tmp_path):
    """Sections of studies without scales are as they were."""
    plain = Project(tmp_path)
    plain.fill(a=[0.1, 0.2, 0.35], b=[0.80, 0.91, 0.99])
    with plain.index() as index:
        section = study_section(judge_study(plain.study, index, []), index, [], {}, "")
    assert section.startswith("## s: PASS 1\n")
    assert "cale" not in section


def test_a_scale_is_frozen_for_itself(project):
    """Freezing a scale locks that scale: not the base, and not after the scale was changed."""
    who = ["git", "-c", "user.name=n", "-c", "user.email=e@e"]
    (project.root / ".gitignore").write_text("*\n!studies\n!studies/*\n")
    for words in (["init", "-q"], ["add", "studies"], ["commit", "-qm", "x"]):
        subprocess.run([*who, *words], cwd=project.root, env=ENV, check=True, capture_output=True)
    full = load_study(project.path, "full")
    selection = judge(project, "full").selection
    event, _ = freeze(full, selection, project.settings, [])
    assert (event.study, event.body["study_digest"]) == ("s.full", full.digest)
    with pytest.raises(StudyError, match=r"s\.toml \[scales\.full\]: is frozen as version 1"):
        freeze(full, selection, project.settings, project.events())
    edited = project.path.read_text("utf-8").replace("= 1000", "= 2000")
    project.path.write_text(edited.replace('phase = "pilot"', 'phase = "frozen"'), "utf-8")
    changed = load_study(project.path, "full")
    (why,) = unlocked(changed.claims["better"], changed, selection, project.events())
    assert "changed since version 1" in why
    base = load_study(project.path)
    assert unlocked(base.claims["better"], base, judge(project).selection, project.events()) == []


def test_a_reported_value_of_another_scale_is_not_compared(tmp_path):
    """At its own scale it is compared, elsewhere not; a scale that does not exist is refused."""
    entry = '\n[[reported]]\nmetric = "test/score"\narm = "a"\nvalue = 0.9\nsource = "x"\nscale = "full"\n'
    project = Project(tmp_path / "p", STUDY + LONG + entry, environment=ENV)
    project.fill(a=[0.1, 0.2, 0.35], b=[0.80, 0.91, 0.99])
    fill_full(project)
    text = log(project)
    assert "not comparable: reported at the scale full |" in text.partition("## s: ")[2]
    assert "agrees: within what one more run would be |" in text.partition("## s.full: ")[2]
    assert "2 value(s) copied from documents: 1 agrees, 0 differs, 1 not comparable" in text
    assert "no scale 'ful'" in refuse(tmp_path, STUDY + LONG + entry.replace("full", "ful"))
