import re
import shutil

import pytest
from lab import LOSS, SCORE, STUDY, Project, add_run, attempt, edit, run_id

from assay.core.errors import StudyError
from assay.core.figures import draw_figures
from assay.core.ledger import record
from assay.core.log import (
    check_figures,
    check_files,
    check_log,
    check_runs,
    evidence_of,
    write_log,
)
from assay.core.run import append_event


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


def write(project, old="", name=None, draw=None, studies=None):
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
        "numpy 2.0.0", "assay run studies/s.toml", "![s: figures/s/results.png](figures/s/results.png)",
        "![s: figures/s/train-loss_nats.png](figures/s/train-loss_nats.png)",
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
    assert (log.compared, log.kept, log.gone) == ((), ("s",), ())


BOUND = "It reached 0.22<!--assay:s/a test/score-->, and 3 others less."


def noted(project, text):
    """A project whose study has this note."""
    project.settings.notes_dir.mkdir(exist_ok=True)
    (project.settings.notes_dir / "s.md").write_text(text, "utf-8")
    return project


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "Words.\n\nMore of them: 4."),
        (BOUND, ""),
        (BOUND, "Other words."),
        (BOUND, f"Now with a reason.\n{BOUND}\n\nAnd {BOUND}"),
        ("Words: 4.", "```\n0.9<!--assay:s/a test/score-->\n```"),
    ],
)
def test_prose_of_a_kept_section_is_as_it_is_now(project, before, after):
    """A note needs no runs to be mended: the log is what it would be where the runs are."""
    old = write(noted(project, before)).text
    there = write(noted(project, after), old=old).text
    assert there != old
    shutil.rmtree(project.runs)
    log = write(project, old=old)
    assert log.text == there
    assert log.kept == ("s",)
    assert not check_log(log.text, write(project, old=log.text).text)


@pytest.mark.parametrize(
    "number",
    [
        "0.23<!--assay:s/a test/score-->",
        "0.22<!--assay:s/b test/score-->",
        "<!--assay:s/a test/score-->",
    ],
)
def test_a_number_that_was_never_held_against_runs_is_refused(project, number):
    """Another value, another binding, or a mark without a number."""
    old = write(noted(project, BOUND)).text
    shutil.rmtree(project.runs)
    told = r"s\.md: line 2 of the note binds .* runs are not on this machine"
    with pytest.raises(StudyError, match=told):
        write(noted(project, f"{BOUND}\nAnd {number}."), old=old)


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
    assert (log.kept, log.gone) == ((), ("s",))


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
    assert "`test/score` ~~0.9 ± 0.09539 [3]~~ → 0.95 ± 0.05657 [2] (1 invalidated)" in text
    assert "Claim `better`: ~~PASS~~ → UNTESTED" in text
    assert "invalidate: " + run_id(folder) in text


def test_failed_and_broken_runs_are_told(project):
    """Failures with their last line, torn lines, and directories that cannot be read."""
    project.add("b", 1, None, generation=2, status="failed", error="Trace\nValueError: NaN loss")
    folder = project.add("a", 1, 0.5, generation=2)
    (folder / "run.json").unlink()
    text = write(project).text
    assert "Failed: b, all, seed 1: `attempt 1 failed: ValueError: NaN loss`" in text
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
    """The figures named without drawing are those that drawing makes, with their digests."""
    drawn = write(project, draw=draw_figures)
    named = write(project, old=drawn.text)
    assert named.text == drawn.text
    assert named.figures == drawn.figures
    assert [f.name for f in drawn.figures] == ["results.png", "train-loss_nats.png"]
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
        ((where, mismatch),) = check_files([file], known).mismatches
        assert (where, mismatch.line) == (file, 2)
        file.write_text("1<!--assay:zz/b test/score-->", "utf-8")
        ((_, mismatch),) = check_files([file], known).mismatches
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


def test_a_changed_or_missing_figure_is_told(project):
    """The log lists the digest of each figure; a file that differs or is gone is named."""
    log = write(project, draw=draw_figures)
    _, figure = log.figures
    assert check_figures(log.text, project.root) == []
    figure.write_bytes(figure.read_bytes() + b"x")
    (problem,) = check_figures(log.text, project.root)
    assert "train-loss_nats.png was changed" in problem.message
    assert log.text.split("\n")[problem.line - 1].startswith(
        "`figures/s/train-loss_nats.png`: sha256"
    )
    figure.unlink()
    (problem,) = check_figures(log.text, project.root)
    assert "train-loss_nats.png is missing" in problem.message


def test_a_figure_without_a_digest_is_told(project):
    """A log that lists no digest for its figure is not the one that the runs give."""
    text = write(project, draw=draw_figures).text
    bare = re.sub("`figures/.*\n\n", "", text)
    assert bare != text
    assert check_log(bare, write(project, old=bare).text)


def test_a_completed_run_edited_in_place_is_told(project):
    """An edit that keeps size and time of the folder is seen once every run is read again."""
    text = write(project).text
    (folder,) = project.runs.glob("s/b/all/1-*")
    path = folder / "events.jsonl"
    with path.open("r+", encoding="utf-8") as file:
        content = file.read()
        file.seek(0)
        file.write(edit(content, ('"test/score":0.8', '"test/score":0.9')))
    with project.index() as index:
        assert check_runs(text, index) == []
        index.verify()
        (problem,) = check_runs(text, index)
    assert problem.startswith(f"runs/s/b/all/{folder.name}: ")
    assert "changed after the run ended" in problem
    assert str(project.root) not in problem
    assert check_log(text, write(project, old=text).text)


def test_a_study_whose_runs_were_all_changed_is_not_kept(project):
    """Runs that are there and broken are not runs on another machine."""
    text = write(project).text
    for path in project.runs.glob("s/*/*/*/events.jsonl"):
        path.write_text("{}\n")
    with project.index() as index:
        index.verify()
    log = write(project, old=text)
    assert log.kept == ()
    assert "| s | Is b better than a? | UNTESTED 1 |" in log.text


def test_planned_seeds_that_were_not_run_are_named_beside_the_verdict(tmp_path):
    """Reasons stand below the claim; of many seeds the first and their number."""
    seeds = list(range(1, 21))
    project = Project(tmp_path, edit(STUDY, ("[1, 2, 3]", str(seeds))))
    fill(project)
    text = write(project).text
    assert "Note: arm 'a': 17 of 20 seeds not run (seed 4, 5, 6, 7, 8 and 12 more)." in text


def test_findings_are_told_once(project):
    """The findings of an INVALID claim are its sentence, not a note as well."""
    project.add("b", 1, 0.8, generation=2, provenance={"machine": {"cpu": "other"}},
                env={"values": {"LANG": "de"}})  # fmt: skip
    text = write(project).text
    assert "**INVALID**" in text
    assert "Note: " not in text


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("b is 0.9<!--assay:s/b test/score--> on average.", None),
        ("b is 0.9.", "1 number above is not bound to runs."),
        ("b is 0.9, a is 0.2 on 3 seeds.", "3 numbers above are not bound to runs."),
    ],
)
def test_unbound_numbers_of_a_note_are_told_below_it(project, note, said):
    """A reader sees how many numbers of the prose nothing stands behind."""
    project.settings.notes_dir.mkdir()
    (project.settings.notes_dir / "s.md").write_text(note, "utf-8")
    text = write(project).text
    assert " above " not in text if said is None else f"{note}\n\n{said}\n" in text
    with project.index() as index:
        known = {"s": lambda: evidence_of(project.study, index, [])}
        prose = check_files([project.settings.notes_dir / "s.md"], known)
    assert sum(prose.unbound.values()) == (int(said[0]) if said else 0)


def test_bound_prose_without_the_runs_is_not_compared(project, tmp_path):
    """Where the runs are elsewhere, a bound number neither holds nor fails."""
    file = tmp_path / "README.md"
    file.write_text("0.1<!--assay:s/b test/score-->\n", "utf-8")
    ((_, mismatch),) = check_files([file], {"s": lambda: None}, ["s"]).mismatches
    assert not mismatch.compared


REPORTED = """
[[reported]]
metric = "test/score"
arm = "a"
value = 0.99967
source = "old.txt"
line = 12
note = "another | machine"
[[reported]]
metric = "test/other"
arm = "b"
value = 3
std = 0.25
n = 4
source = "old.txt"
"""


def test_a_study_whose_runs_are_all_struck_shows_what_it_had(project):
    """Without a run that counts, every value is struck, and nothing stands in its place."""
    for folder in project.runs.glob("*/*/*/*"):
        strike(project, folder)
    text = write(project).text
    assert "| a | `test/score` | – [0] (3 invalidated) |" in text
    assert "- b: `test/score` ~~0.9 ± 0.09539 [3]~~ → – [0] (3 invalidated)" in text
    assert "- Claim `better`: ~~PASS~~ → UNTESTED" in text


def test_a_revised_claim_is_linked_with_the_one_that_replaces_it(project):
    """Both sections tell it, at the claim and in the ledger; no verdict changes."""
    before = write(project).text
    other = project.root / "studies" / "t.toml"
    other.write_text(edit(project.text, ('id = "s"', 'id = "t"')), "utf-8")
    twin = Project(project.root, other.read_text("utf-8"), "t")
    twin.fill(a=[0.1, 0.2, 0.35], b=[0.80, 0.91, 0.99])
    body = {"claim": "s/better", "by": "t/better", "because": "the | protocol"}
    record(project.settings.ledger_dir, "revise", "s", body)
    text = write(project, studies=[project.study, twin.study]).text
    first, second = text.partition("## t: ")[::2]
    assert re.search(r"  Revised by `t/better` \(\d{4}-\d\d-\d\d\): the \| protocol\n", first)
    assert re.search(r"  Revises `s/better` \(\d{4}-\d\d-\d\d\): the \| protocol\n", second)
    for section in (first, second):
        assert "revise: s/better by t/better because the | protocol" in section
    assert "## s: PASS 1" in before
    assert "## s: PASS 1" in text


def test_reported_values_stand_beside_ours(tmp_path):
    """Copied values are shown as copied, with their source, ours, and that they are no evidence."""
    project = Project(tmp_path, STUDY + REPORTED)
    fill(project)
    text = write(project).text
    assert "### Reported (not evidence)" in text
    assert "never evidence" in text
    row = r"| `test/score` | a | all | 0.99967 | old.txt, line 12 | another \| machine | 0.2167 ± 0.1258 [3] | 0 to 0.8418 | differs: outside what one more run would be |"
    assert row in text
    assert (
        "| `test/other` | b | all | 3 ± 0.25 [4] | old.txt | – | – [0] (3 without it) | – | not comparable: no run of ours has this value |"
        in text
    )


def test_a_page_of_all_reported_values(tmp_path):
    """One table over all studies, also of those whose runs are elsewhere, counted by verdict."""
    project = Project(tmp_path, STUDY + REPORTED)
    fill(project)
    text = write(project).text
    page = text.partition("## Reported and measured\n")[2].partition("<!--assay:begin")[0]
    assert "2 value(s) copied from documents: 0 agrees, 1 differs, 1 not comparable." in page
    assert "| s | `test/score` | a | all | 0.99967 |" in page
    (project.runs / "s").rename(tmp_path / "elsewhere")
    assert write(project, text).text == text
    plain = Project(tmp_path / "plain")
    fill(plain)
    assert "Reported and measured" not in write(plain).text


def test_reported_values_of_a_grid(tmp_path):
    """A reported cell is compared with that cell; one that names several is compared with none."""
    grid = "[grid]\nalpha = [0.0, 1.0]\n[config]"
    more = '[[reported]]\nmetric = "test/score"\narm = "a"\nvalue = 1\nsource = "x"\n'
    text = edit(STUDY.partition("[claims")[0], ("[config]", grid))
    project = Project(tmp_path, text + more + "at = { alpha = 1 }\n" + more)
    for planned in project.plan("a", "1"):
        add_run(project.runs, planned, summary={SCORE: planned.cell["alpha"] / 2})
    text = write(project).text
    assert (
        "| a | alpha = 1 | 1 | x | – | 0.5 [1] (2 not ended) | – | not comparable: one run of ours, which tells nothing of the spread |"
        in text
    )
    assert (
        "| a | all | 1 | x | – | – (2 cells) | – | not comparable: it names 2 cells of ours at once |"
        in text
    )


def test_no_message_tells_a_path_of_the_machine(tmp_path):
    """Errors, events and findings hold neither the project's folder nor anybody's home."""
    project = Project(tmp_path, environment={"HOME": "/data/homes/alice"})
    error = f"OSError: {project.root}/data/x.bin, /data/homes/alice/y and /elsewhere/bob/z <!--assay:begin t-->"
    folder = project.add("a", 1, 0.5, status=None)
    other = f"/scratch/bob/runs/s/a/all/{folder.name}/metrics.csv of https://x.org/a/b in 1/2 /data/homes/alice"
    writer = attempt(folder, {SCORE: 0.5}, status="failed", error=error)
    append_event(folder, writer.attempt, "collect", other)
    text = write(project).text
    assert f"runs/s/a/all/{folder.name}/metrics.csv of https://x.org/a/b in 1/2 ~" in text
    assert "OSError: …/x.bin, ~/y" in text or "OSError: data/x.bin, ~/y" in text
    for place in (str(project.root), "alice", "bob", "<!--assay:begin t"):
        assert place not in text, place


def test_failed_attempts_and_their_time_are_told(tmp_path):
    """A failure that a later attempt made good is listed, and its seconds are in the cost."""
    project = Project(tmp_path)
    folder = project.add("a", 1, 0.5, status="failed", error="Trace\nMemoryError: no room")
    attempt(folder, {SCORE: 0.5})
    text = write(project).text
    assert "- Failed: a, all, seed 1: `attempt 1 failed: MemoryError: no room`" in text
    assert "| pilot | completed | 2 | 4 |" in text
    assert "Cost of the runs that count: 4 process seconds" in text


def test_runs_that_were_run_again_are_shown_struck(project):
    """A superseded run keeps its values in sight."""
    (folder,) = project.runs.glob("s/b/all/1-*")
    project.add("b", 1, 0.95, generation=2)
    assert (
        f"- Run again: {run_id(folder)} (b, all, seed 1): `test/score` ~~0.8~~"
        in write(project).text
    )


def test_two_dirty_states_look_different(tmp_path):
    """Changed code is shown with the digest of its changes; without a commit, its source's."""
    project = Project(tmp_path)
    for seed, code in enumerate(
        ({"dirty": True, "diff_sha256": "a" * 64}, {"dirty": True, "diff_sha256": "b" * 64},
         {"commit": None, "vcs": None}), start=1
    ):  # fmt: skip
        project.add("a", seed, 0.5, provenance={"code": code})
    text = write(project).text
    for shown in (
        "| ccccccccc+aaaaaa |",
        "| ccccccccc+bbbbbb |",
        "| no commit, source 555555555 |",
    ):
        assert shown in text


def test_machine_of_a_command_tells_the_number_of_packages(tmp_path):
    """Of a command every package decides: a hundred names are no line of a log."""
    text = edit(STUDY, ('engine = "lab:ENGINE"', 'cmd = "train {method} {seed.init}"'),
                ('data = "init"', 'data = 0'), ("budget = { steps = 100 }\n", ""))  # fmt: skip
    project = Project(tmp_path, text)
    for planned in project.plan("a"):
        add_run(project.runs, planned, provenance={"packages": {"decisive": {"x": "1", "y": "2"}}})
    text = write(project).text
    assert "Python 3.11.7, 3 package(s)\n" in text
    assert "numpy" not in text
