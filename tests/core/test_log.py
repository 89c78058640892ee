import re
import shutil

import pytest
from lab import LOSS, SCORE, STUDY, Project, edit, run_id

from assay.core.errors import StudyError
from assay.core.figures import draw_figures
from assay.core.ledger import record
from assay.core.log import check_files, check_log, evidence_of, name_figures, write_log


@pytest.fixture
def project(tmp_path):
    """A study with runs of both arms."""
    made = Project(tmp_path)
    fill(made)
    return made


def fill(project):
    for arm, values in {"a": [0.1, 0.2, 0.35], "b": [0.80, 0.91, 0.99]}.items():
        for seed, value in enumerate(values, start=1):
            project.add(arm, seed, value, series={LOSS: [3.0, 2.0 + value, 1.0]})


def write(project, old="", name=None, draw=name_figures, studies=None):
    with project.index(name) as index:
        return write_log(
            studies or [project.study], index, project.events(), project.settings, old, draw=draw
        )


def strike(project, folder, because="env leaked"):
    body = {"target": run_id(folder), "because": because}
    return record(project.settings.ledger_dir, "invalidate", "s", body)


def test_log_tells_what_a_reader_needs(project):
    """Verdict in the heading, question, claim, results, setup, contract, runs, cost, commands."""
    text = write(project).text
    for part in (
        "| s | Is b better than a? | PASS 1 |", "## s: PASS 1", "**PASS** `better`: b is better",
        "Estimate 0.6833, 95% interval", 'Criterion: `diff("test/score", "b", "a") > 0`',
        "| a | `test/score` | 0.2167 ± 0.1258 [3] |", "1: 0.8, 2: 0.91, 3: 0.99",
        "Arm **a** (baseline): `method = a`", "Seeds: init = 1 2 3, data = the seed of init",
        "Budget: steps = 100", "`width = 8`", "may differ in: method", "Nothing else differs.",
        "Cost of the runs that count: 12 process seconds, steps 600", "a cpu, 2 cores, 8 GiB",
        "numpy 2.0.0", "assay run studies/s.toml", "![s: figures/s/train-loss_nats.png](figures/s/train-loss_nats.png)",
    ):  # fmt: skip
        assert part in text, part


def test_same_index_same_bytes(project, tmp_path):
    """Two fresh indexes, and run directories made in another order, give the same bytes."""
    one = write(project, name="one.sqlite").text
    assert write(project, name="two.sqlite").text == one
    copy = project.runs.with_name("copy")
    for folder in sorted(project.runs.glob("*/*/*/*"), key=lambda p: p.name[::-1]):
        shutil.copytree(folder, copy / folder.relative_to(project.runs))
    shutil.rmtree(project.runs)
    copy.rename(project.runs)
    assert write(project, name="three.sqlite").text == one


def test_written_log_passes_its_check(project):
    """A log that was just written holds, also once it was written over itself."""
    text = write(project).text
    again = write(project, old=text).text
    assert again == text
    assert check_log(text, again) == []


def test_check_names_the_line_of_a_changed_number(project):
    """A number edited in the log is told with its line and what the runs give."""
    text = write(project).text
    edited = edit(text, ("0.2167 ± 0.1258 [3]", "0.3167 ± 0.1258 [3]"))
    line = 1 + edited[: edited.index("0.3167")].count("\n")
    problems = check_log(edited, write(project, old=edited).text)
    assert any(p.line == line and "0.2167" in p.message for p in problems)
    assert any("'s' was edited by hand" in p.message for p in problems)


def test_check_tells_of_new_runs(project):
    """A log that is older than the runs does not hold."""
    text = write(project).text
    project.add("b", 1, 0.95, generation=2)
    assert check_log(text, write(project, old=text).text)


def test_check_of_a_missing_log(project):
    """Without a log the first line is missing."""
    (problem, *_) = check_log("", write(project).text)
    assert problem.line == 1


def test_shifted_lines_are_told_once(project):
    """After a removed line only the first difference is told."""
    text = write(project).text
    lines = text.split("\n")
    del lines[12]
    problems = check_log("\n".join(lines), text)
    assert len([p for p in problems if "runs give" in p.message]) == 1


def test_study_without_local_runs_keeps_its_section(project):
    """On a machine without the runs the section, its verdict and the bytes stay."""
    text = write(project).text
    shutil.rmtree(project.runs)
    log = write(project, old=text)
    assert log.text == text
    assert log.kept == ("s",)


def test_kept_section_that_was_edited_stays_noticed(project):
    """Writing the log without the runs does not launder an edit by hand."""
    text = write(project).text
    shutil.rmtree(project.runs)
    edited = edit(text, ("0.2167 ± 0.1258 [3]", "0.3167 ± 0.1258 [3]"))
    again = write(project, old=edited).text
    assert "0.3167" in again
    assert any("edited by hand" in p.message for p in check_log(again, again))


def test_section_without_its_end_is_not_dropped(project):
    """A section that cannot be kept whole is an error, not a silent loss."""
    text = write(project).text
    shutil.rmtree(project.runs)
    with pytest.raises(StudyError, match="no whole end mark"):
        write(project, old=re.sub("<!--assay:end.*-->", "", text))


def test_section_of_a_removed_study_file_stays(project):
    """Deleting a study file does not delete its results from the log."""
    text = write(project).text
    other = Project(project.root, edit(STUDY, ('id = "s"', 'id = "t"')), name="t")
    project.path.unlink()
    log = write(other, old=text)
    assert "## s: PASS 1" in log.text
    assert "| s | (its study file is gone) | PASS 1 |" in log.text


def test_study_without_runs_is_listed(tmp_path):
    """A study that nobody ran is in the overview only."""
    text = write(Project(tmp_path)).text
    assert "| s | Is b better than a? | no runs yet |" in text
    assert "## s" not in text


def test_invalidated_run_is_struck_with_its_reason(project):
    """Run, struck value, reason, and what changed with it: old → new, for cells and claims."""
    (folder,) = project.runs.glob("s/b/all/1-*")
    strike(project, folder, "PSYCHE leaked")
    text = write(project).text
    assert f"{run_id(folder)} (b, all, seed 1): `test/score` ~~0.8~~" in text
    assert "PSYCHE leaked" in text
    assert "`test/score` ~~0.9 ± 0.09539 [3]~~ → 0.95 ± 0.05657 [2] (1 not ended)" in text
    assert "Claim `better`: ~~PASS~~ → UNTESTED" in text
    assert "invalidate: " + run_id(folder) in text


def test_failed_and_broken_runs_are_told(project):
    """Failures with their last line, torn lines, and directories that cannot be read."""
    project.add("b", 1, None, generation=2, status="failed", error="Trace\nValueError: NaN loss")
    folder = project.add("a", 1, 0.5, generation=2)
    (folder / "run.json").unlink()
    text = write(project).text
    assert "Failed: b, all, seed 1: `ValueError: NaN loss`" in text
    assert f"Not readable, and counted nowhere: `s/a/all/{folder.name}`" in text
    assert str(project.root) not in text


def test_log_does_not_depend_on_where_the_project_lies(project, tmp_path):
    """No path of this machine is in the log."""
    folder = project.add("a", 1, 0.5, generation=2)
    (folder / "run.json").unlink()
    one = write(project).text
    project.root.rename(tmp_path.with_name("elsewhere"))
    moved = Project(tmp_path.with_name("elsewhere"))
    assert write(moved).text == one


def test_note_is_included(project):
    """Prose of a person stands in the section; marks of sections in it are refused."""
    notes = project.settings.notes_dir
    notes.mkdir()
    (notes / "s.md").write_text("I *believe* b.\n", "utf-8")
    assert "I *believe* b.\n" in write(project).text
    (notes / "s.md").write_text("<!--assay:begin s-->", "utf-8")
    with pytest.raises(StudyError, match=r"s\.md.*marks"):
        write(project)
    (notes / "s.md").write_bytes(b"\xff")
    with pytest.raises(StudyError, match="UTF-8"):
        write(project)


def test_log_shows_the_figures_that_it_draws(project):
    """The figures named without drawing are those that drawing makes."""
    named, drawn = write(project), write(project, draw=draw_figures)
    assert named.text == drawn.text
    assert named.figures == drawn.figures
    assert [f.name for f in drawn.figures] == ["train-loss_nats.png"]
    assert all(f.is_file() for f in drawn.figures)
    assert "(figures/s/train-loss_nats.png)" in drawn.text


def test_no_claims_and_no_metrics(tmp_path):
    """A study without claims, whose runs logged nothing, has a section that says so."""
    project = Project(tmp_path, STUDY.partition("[claims")[0])
    project.add("a", 1, None)
    text = write(project).text
    assert "## s: no claims" in text
    assert "No metrics yet." in text


def test_bars_in_a_question_do_not_break_the_overview(tmp_path):
    """A bar in a question is no cell border."""
    project = Project(tmp_path, edit(STUDY, ("Is b better", "Is |b| better")))
    assert "| s | Is /b/ better than a? | no runs yet |" in write(project).text


def test_bound_files_are_checked(project, tmp_path):
    """Markdown files are held against the studies; the file and line are told."""
    file = tmp_path / "README.md"
    file.write_text("0.9<!--assay:s/b test/score-->\n0.8<!--assay:s/b test/score-->\n", "utf-8")
    with project.index() as index:
        known = {"s": lambda: evidence_of(project.study, index, [])}
        ((where, mismatch),) = check_files([file], known)
        assert (where, mismatch.line) == (file, 2)
        file.write_text("1<!--assay:zz/b test/score-->", "utf-8")
        ((_, mismatch),) = check_files([file], known)
        assert "no study 'zz'" in mismatch.message
        with pytest.raises(StudyError, match="cannot be read"):
            check_files([tmp_path / "none.md"], known)


def test_values_in_the_log_are_those_of_the_runs(project):
    """Every seed's value in the results is the one that its run stored."""
    text = write(project).text
    with project.index() as index:
        for run in index.runs("s"):
            value = {r.name: r.value for r in index.run_values(run.id)}[SCORE]
            assert f"{run.seed_label}: {value:g}" in text
