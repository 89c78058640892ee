"""Laws of the commands that look: one answer in every form, and help for every option."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys

import pytest
from project import ASSAY, Project

COMMANDS = ["run", "ls", "show", "table", "diff", "verdict", "freeze", "invalidate", "restore",
            "log", "index", "addition", "addition train", "addition evaluate",
            "addition predict"]  # fmt: skip
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


def test_closed_pipe_is_quiet(project):
    """`assay ls | head -1`: the line, nothing on stderr, the exit code of a closed pipe."""
    for words in (["ls", "toy", "--json"], ["ls", "toy"]):
        runner = project.start(*words)
        runner.stdout.close()
        assert runner.stderr.read() == ""
        runner.stderr.close()
        assert runner.wait(60) == 141, words


def test_invalidation_shows_and_can_be_undone(tmp_path):
    """An invalidated run is struck from tables with its reason; `restore` undoes it."""
    project = Project(tmp_path).toy()
    project("run", "toy")
    run = project.json("ls", "toy")[0]["id"]
    before = project("table", "toy").stdout
    project("invalidate", run, "--because", "the client [leaked]")
    assert "the client [leaked]" in project("show", run).stdout
    assert project("table", "toy").stdout != before
    assert "invalidated already" in project.refused("invalidate", run, "--because", "again")
    project("restore", run, "--because", "it had not")
    assert project("table", "toy").stdout == before
