"""Laws of the commands that look: one answer in every form, and help for every option."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys

import pytest
from project import ASSAY, TOY, TOY_STUDY, Project

COMMANDS = ["run", "ls", "show", "table", "diff", "verdict", "audit", "freeze", "invalidate", "restore", "revise", "baseline", "analyse",
            "log", "index", "import", "addition", "addition train", "addition evaluate",
            "addition predict", "concepts", "concepts analyze", "concepts pretrain", "concepts registry", "concepts publish", "concepts settings", "credit", "credit train", "credit probe", "credit linesearch", "credit estimators",
            "swarm", "swarm local", "swarm agreement", "swarm export-tiers"]  # fmt: skip
HEAVY = {"torch", "polars", "scipy", "numpy", "matplotlib"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose toy study has run."""
    project = Project(tmp_path_factory.mktemp("queries")).toy()
    project("run", "toy")
    return project


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh Python has after this code."""
    code += (
        "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_import_is_light():
    """`import assay` loads none of the heavy libraries."""
    assert not loaded("import assay") & HEAVY


def test_help_is_light():
    """`assay --help` loads none of the heavy libraries."""
    code = "import sys; sys.argv = ['assay', '--help']\nfrom assay.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert not loaded(code) & HEAVY


def test_help_lists_every_command():
    """`assay --help` names every command with a sentence."""
    text = subprocess.run([ASSAY, "--help"], capture_output=True, text=True, check=True).stdout
    for command in COMMANDS:
        if " " not in command:
            assert re.search(rf"│ {command} +\S", text), command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_documents_every_option(command, tmp_path):
    """`--help` of every command has words for each of its options and arguments."""
    text = Project(tmp_path)(*command.split(), "--help", COLUMNS="200").stdout
    assert f"assay {command}" in text
    for line in text.splitlines():
        option = re.match(r"│ [ *]*((--)?[A-Z][A-Z-]*|--[a-z-]+)(?: +(.*?)) *│$", line)
        if option:
            described = re.sub(r"(--[a-z-]+|[A-Z-]{2,}|\[.*?\]| )", "", option[3] or "")
            assert described, f"{command}: no words for {option[1]}"


def test_json_of_every_command_parses(project):
    """--json prints one JSON document and nothing else."""
    run = project.json("ls", "toy")[0]["id"]
    for words in (["ls"], ["ls", "toy"], ["show", run], ["table", "toy"], ["diff", run, run]):
        project.json(*words)
    assert project.json("verdict", "toy", code=None)["study"] == "toy"


def test_table_says_the_same_in_every_form(project):
    """CSV and JSON hold the same values; Markdown and plain text the same means."""
    rows = list(csv.DictReader(io.StringIO(project("table", "toy", "--csv").stdout)))
    values = sorted(float(row["value"]) for row in rows if row["metric"] == "test/score")
    text = json.dumps(project.json("table", "toy", "test/score"))
    assert len(values) == 6
    for value in values:
        assert str(value) in text
    markdown = project("table", "toy", "--md", "--seeds").stdout
    plain = project("table", "toy", "--seeds").stdout
    means = re.findall(r"[\d.]+ ± [\d.]+ \[3\]", plain)
    assert len(means) == 2
    for mean in means:
        assert mean in markdown


def test_tables_are_not_cut_without_a_terminal(project):
    """Piped output has whole ids and whole cells, however narrow the terminal would be."""
    done = project("ls", "toy", COLUMNS="20")
    for run in project.json("ls", "toy"):
        assert f"{run['id']}  {run['arm']}" in done.stdout
    assert "…" not in done.stdout


def test_rebuilt_index_gives_the_same_answers(project):
    """Deleting or rebuilding the index changes no answer."""
    questions = [["ls", "toy"], ["table", "toy", "--seeds"], ["verdict", "toy"]]
    before = [project(*q, code=None).stdout for q in questions]
    assert "6 run(s) read" in project("index", "--rebuild").stdout
    assert [project(*q, code=None).stdout for q in questions] == before
    shutil.rmtree(project.cache)
    assert project(*questions[1]).stdout == before[1]


def test_show_and_diff_name_what_was_asked(project):
    """`show` tells state, seeds and metrics by the first letters of an id; `diff` the factor."""
    runs = project.json("ls", "toy")
    text = project("show", runs[0]["id"][:26]).stdout
    assert "completed, attempt 1" in text
    assert "test/score" in text
    low = next(r["id"] for r in runs if r["arm"] == "low")
    high = next(r["id"] for r in runs if r["arm"] == "high")
    assert re.search(r"config\.rate +0\.25 +0\.75", project("diff", low, high).stdout)
    assert "do not differ" in project("diff", low, low).stdout


def test_log_check_tells_a_changed_number(tmp_path):
    """`log --check` is 0 for the log as written, and 1 with the line of a changed number."""
    project = Project(tmp_path).toy()
    project("run", "toy")
    project("log")
    project("log", "--check")
    path = project.root / "EXPERIMENTS.md"
    text = path.read_text()
    mean = re.search(r"0\.\d{4} ± ", text)
    line = text.count("\n", 0, mean.start()) + 1
    path.write_text(text.replace(mean[0], "0.9999 ± ", 1))
    done = project("log", "--check", code=1)
    assert f"EXPERIMENTS.md:{line}: " in done.stdout


def test_log_names_runs_whose_study_it_cannot_see(tmp_path):
    """A study file elsewhere has its runs here, and no section: that is said, and how it is reached."""
    project = Project(tmp_path).toy()
    (project.root / "studies/toy.toml").rename(project.root / "toy.toml")
    project("run", "toy.toml")
    said = project("log").stdout
    assert "of toy: no file under" in said
    assert "studies has this id" in said
    (project.root / "toy.toml").rename(project.root / "studies/toy.toml")
    assert "left out" not in project("log").stdout


def test_log_check_without_the_runs_claims_nothing(tmp_path):
    """Where the runs are elsewhere nothing was compared, which is said; exit code 0."""
    project = Project(tmp_path).toy()
    project("run", "toy")
    project.write(
        "notes/toy.md", "Low ends at 0.5<!--assay:toy/low test/score stat=n-->, in 3 seeds.\n"
    )
    project("log")
    mean = project.json("table", "toy", "test/score")["rows"][0]["mean"]
    project.write(
        "notes/toy.md", f"Low ends at {mean:.3f}<!--assay:toy/low test/score-->, in 3 seeds.\n"
    )
    project("log")
    whole = project("log", "--check").stdout
    assert "holds; 1 file(s)" in whole
    assert "notes/toy.md: 1 unbound number(s)" in whole
    shutil.rmtree(project.runs)
    done = project("log", "--check").stdout
    assert "1 section(s) not compared: their runs are not on this machine (toy)" in done
    assert "notes/toy.md:1: " in done
    assert "not compared: the runs of 'toy'" in done
    assert "no number was compared with runs" in done
    assert "holds" not in done


def test_log_check_tells_a_run_that_was_edited_in_place(tmp_path):
    """A completed run whose files were changed is named, and nothing of it is trusted; exit 1."""
    project = Project(tmp_path).toy()
    project("run", "toy")
    project("log")
    (folder,) = project.runs.glob("toy/low/all/1-*")
    path = folder / "metrics-0-1.jsonl"
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content.replace(b'"step":0', b'"step":9', 1))
    done = project("log", "--check", code=1).stdout
    assert f"runs/toy/low/all/{folder.name}: " in done
    assert "changed after the run ended" in done
    path.write_bytes(content)
    project("log", "--check")


def test_log_check_tells_a_figure_that_was_drawn_by_another(tmp_path):
    """A figure that is not the one that the log was written with is named; exit 1."""
    toy = TOY.replace('says="Score."', 'says="Score.", goal="max"')
    project = Project(tmp_path).toy()
    project.write("toy.py", toy)
    project.commit()
    project("run", "toy")
    project("log")
    project("log", "--check")
    figure = project.root / "figures/toy/val-score.png"
    figure.write_bytes(figure.read_bytes() + b"x")
    assert (
        "the figure figures/toy/val-score.png was changed"
        in project("log", "--check", code=1).stdout
    )
    figure.unlink()
    assert (
        "the figure figures/toy/val-score.png is missing"
        in project("log", "--check", code=1).stdout
    )


def test_verdict_names_planned_seeds_that_were_not_run(tmp_path):
    """Reasons stand beside the verdict, as docs/verdicts.md says."""
    project = Project(tmp_path).toy(
        TOY_STUDY.replace("[claims.higher]", "[claims.higher]\nmin_seeds = 2")
    )
    project("run", "toy")
    project.write(
        "studies/toy.toml",
        (project.root / "studies/toy.toml").read_text().replace("[1, 2, 3]", "[1, 2, 3, 4]"),
    )
    assert (
        "note: arm 'high': 1 of 4 seeds not run (seed 4)"
        in project("verdict", "toy", code=None).stdout
    )


def test_closed_pipe_is_quiet(project):
    """`assay ls | head -1`: the line, nothing on stderr, the exit code of a closed pipe."""
    for words in (["ls", "toy", "--json"], ["ls", "toy"]):
        runner = project.start(*words)
        runner.stdout.close()
        assert runner.stderr.read() == ""
        runner.stderr.close()
        assert runner.wait(60) == 141, words


def test_invalidation_shows_and_can_be_undone(tmp_path):
    """An invalidated run is struck from tables with its reason; `restore` undoes it.

    Both say which claims got another verdict, and why.
    """
    project = Project(tmp_path).toy()
    project("run", "toy")
    run = project.json("ls", "toy")[0]["id"]
    before = project("table", "toy").stdout
    verdict = project.json("verdict", "toy", code=None)["judgements"][0]["verdict"]
    done = project("invalidate", run, "--because", "the client [leaked]").stdout
    assert f"higher: {verdict} → UNTESTED. At least 3 seeds are needed" in done
    assert "the client [leaked]" in project("show", run).stdout
    assert project("table", "toy").stdout != before
    assert "invalidated already" in project.refused("invalidate", run, "--because", "again")
    done = project("restore", run, "--because", "it had not").stdout
    assert f"higher: UNTESTED → {verdict}. " in done
    assert project("table", "toy").stdout == before


def test_numbers_of_prose_are_rewritten(tmp_path):
    """`assay log --fix` writes what the runs say, in notes and in the files given; told by line."""
    toy = Project(tmp_path).toy()
    toy("run", "toy")
    (low, *_) = (r for r in toy.json("ls", "toy") if r["arm"] == "low")
    score = {m["name"]: m["value"] for m in toy.json("show", low["id"])["metrics"]}["test/score"]
    mark = f"<!--assay:toy/low test/score seed={low['seed_label']}-->"
    note = toy.root / "notes" / "toy.md"
    note.parent.mkdir()
    note.write_bytes(f"First.\r\nIt ends at **99.123**{mark}, not 3.\r\n".encode())
    paper = toy.write("paper.md", f"see 77.0{mark}\n")
    toy("log")
    assert toy("log", "--check", "paper.md", code=1).stdout.count("99.123") >= 1
    told = toy("log", "--fix", "paper.md").stdout
    assert f"notes/toy.md: line 2: 99.123** → {score:.3f}**" in told
    assert "paper.md: line 1: 77.0 → " in told
    assert note.read_bytes() == f"First.\r\nIt ends at **{score:.3f}**{mark}, not 3.\r\n".encode()
    toy("log", "--check", "paper.md")
    assert paper.read_text() == f"see {score:.1f}{mark}\n"
    assert "one of them" in toy.refused("log", "--check", "--fix")


def test_claims_are_revised_by_name(project):
    """A claim that does not exist, no reason, or itself: refused, and nothing is recorded."""
    told = project.refused("revise", "toy/nothing", "--by", "toy/high-wins", "--because", "x")
    assert "unknown claim 'nothing'" in told
    assert "STUDY/CLAIM" in told
    name = next(iter(project.json("verdict", "toy", code=None)["judgements"]))["name"]
    assert "another claim" in project.refused(
        "revise", f"toy/{name}", "--by", f"toy/{name}", "--because", "x"
    )
    assert "another claim" in project.refused(
        "revise", f"toy/{name}", "--by", "toy/x", "--because", " "
    )
    assert not list((project.root / "ledger").glob("**/revise-*"))


def test_audit_tells_what_is_wrong_or_that_nothing_is(project):
    """Exit code 0 without a finding; the same in JSON."""
    assert "audits find nothing" in project("audit", "toy").stdout
    assert project.json("audit", "toy") == {"study": "toy", "findings": []}


def test_a_named_baseline_is_compared_with(tmp_path):
    """`assay baseline` records a version; `--against` shows deltas to it, `--percent` in per cent."""
    toy = Project(tmp_path).toy()
    toy("run", "toy")
    told = toy("baseline", "best", "toy", "low", "--because", "the first").stdout
    assert "best@1 is arm low of toy" in told
    shown = toy("table", "toy", "test/score", "--against", "best").stdout
    assert "Δ to best@1" in shown
    assert "Δ to best@1, %" in toy("table", "toy", "--against", "best@1", "--percent").stdout
    assert "Baselines: best@1" in toy.refused("table", "toy", "--against", "best@2")
