import pytest
from lab import STUDY, Project, edit

from assay.core.errors import StudyError
from assay.core.plan import cell_label, expand, seed_labels
from assay.core.study import load_study

COMMAND = """
[study]
id = "c"
question = "Which?"
factor = "method"
seeds = { init = [1, 2], data = 7 }
budget = { steps = 50 }
[config]
model = { width = 8 }
[environment]
DATA = "d"
HOME = true
[arms.a]
method = "a b"
cmd = '''CMD'''
"""


def plan(folder, cmd):
    path = folder / "c.toml"
    path.write_text(COMMAND.replace("CMD", cmd), "utf-8")
    return expand(load_study(path))


def words(folder, cmd):
    return plan(folder, cmd)[0].cmd


def test_placeholders_are_settings_and_seeds(tmp_path):
    """A placeholder is a setting (dotted), the budget, or seed.ROLE of the run."""
    cmd = "p {model.width} --steps={steps} s{seed.init}-{seed.data}"
    assert [r.cmd for r in plan(tmp_path, cmd)] == [
        ("p", "8", "--steps=50", "s1-7"),
        ("p", "8", "--steps=50", "s2-7"),
    ]


def test_a_value_with_spaces_stays_one_word(tmp_path):
    """Words are split before values are filled in: a value cannot add an argument."""
    assert words(tmp_path, "p {method} '{method} c' \"d e\"") == ("p", "a b", "a b c", "d e")


def test_doubled_braces_are_literal(tmp_path):
    """{{ and }} are braces, as in Python's format; a lone brace is itself."""
    assert words(tmp_path, "p {{method}} '{{\"a\": {steps}}}' } {") == (
        "p", "{method}", '{"a": 50}', "}", "{",
    )  # fmt: skip


def test_output_folder_is_left_for_the_worker(tmp_path):
    """{out} is known only when the run is made."""
    assert words(tmp_path, "p --out={out}") == ("p", "--out={out}")


def test_unknown_placeholder_is_told(tmp_path):
    """A placeholder that names nothing is told with arm, name and the nearest."""
    with pytest.raises(StudyError, match=r"c\.toml, arm 'a': cmd: \{stps\}.*'steps'"):
        plan(tmp_path, "p {stps}")


@pytest.mark.parametrize("cmd", ["p {}", "p {seed}", "p {seed.x}"])
def test_placeholder_must_name_one_value(tmp_path, cmd):
    """An empty placeholder, all seeds, or an unknown role is no value."""
    with pytest.raises(StudyError, match="unknown key"):
        plan(tmp_path, cmd)


def test_unclosed_quote_is_told(tmp_path):
    """A command line that no shell could split is told."""
    with pytest.raises(StudyError, match=r"cannot be split into words: No closing quotation"):
        plan(tmp_path, 'p "x')


def test_declared_environment_is_part_of_the_run(tmp_path):
    """Declared variables arrive; true means passed through."""
    assert plan(tmp_path, "p {seed.init}")[0].env == {"DATA": "d", "HOME": None}


def test_each_command_is_its_own_cohort(tmp_path):
    """Programs cannot be stacked."""
    assert len({r.cohort for r in plan(tmp_path, "p {seed.init}")}) == 2


def test_identity_is_the_computation(tmp_path):
    """Question, claims and other seeds do not change what a run computes; a setting does."""
    project = Project(tmp_path)
    before = {r.key: r.identity for r in project.plan()}
    project.write(
        edit(STUDY, ("Is b better than a?", "Who?"), ("> 0", "> 1"), ("2, 3]", "2, 3, 4]"))
    )
    after = {r.key: r.identity for r in project.plan()}
    assert before.items() < after.items()
    project.write(edit(STUDY, ("width = 8", "width = 9")))
    assert not set(before.values()) & {r.identity for r in project.plan()}


def test_default_written_out_is_the_same_computation(tmp_path):
    """A setting written out at its default, or as 1 for 1.0, asks for the same run."""
    project = Project(tmp_path)
    before = [r.identity for r in project.plan()]
    project.write(edit(STUDY, ("width = 8", "width = 8\nalpha = 0")))
    assert [r.identity for r in project.plan()] == before


def test_cell_label_does_not_depend_on_order():
    """A cell has one name, in whatever order the grid is written."""
    assert cell_label({"b": 1, "a": 0.5}) == cell_label({"a": 0.5, "b": 1}) == "a=0.5,b=1"
    assert cell_label({}) == "all"


def test_seed_label_names_what_varies(tmp_path):
    """One varying role: its number; several: each with its name; none: the first role."""
    project = Project(tmp_path)
    assert seed_labels(project.study) == ("1", "2", "3")
    project.write(edit(STUDY, ('data = "init"', "data = [0, 1]")))
    assert seed_labels(project.study)[:2] == ("data=0,init=1", "data=1,init=1")
    project.write(edit(STUDY, ("[1, 2, 3]", "[5]")))
    assert seed_labels(project.study) == ("5",)


def test_arm_overrides_config_and_grid_fills_in(tmp_path):
    """An arm may set what [config] gives as the common value."""
    project = Project(tmp_path)
    text = STUDY.partition("[claims")[0]
    project.write(edit(text, ("width = 8", 'method = "z"\n[grid]\nalpha = [0.5]')))
    assert [(r.config["method"], r.config["alpha"]) for r in project.plan(seed="1")] == [
        ("a", 0.5), ("b", 0.5),
    ]  # fmt: skip
