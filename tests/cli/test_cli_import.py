"""`assay import`: hand-kept logs, from a terminal."""

import json

import pytest
from project import Project

LOG = "# Log\n\n## Exp 1 — FAILED\n\nRank 122 / 128 (95.5%), 2/3 (66%).\n"


@pytest.fixture
def project(tmp_path):
    """An empty folder: an import needs no study, no run and no git."""
    return Project(tmp_path)


def test_report(project):
    """The findings, each with its place and the way out; the exit code says what there is."""
    (project.root / "log.md").write_text(LOG)
    (project.root / "sound.md").write_text("# Log\n\n64 / 128 (50%)\n")
    (project.root / "doubtful.md").write_text("2/3 (66%)\n")
    out = project("import", "log.md", code=4).stdout
    assert "log.md: 2 entries, 0 tables, 0 commands, " in out
    assert "(reported, not evidence); 1 errors, 1 notes." in out
    assert "error 5:6  share: 122/128 is 95.31%, printed as 95.5%." in out
    assert "95.3%. Correct the share" in out
    project("import", "sound.md", code=0)
    project("import", "doubtful.md", code=1)
    project("import", "sound.md", "log.md", code=4)
    assert not (project.root / "runs").exists()


def test_json(project):
    """Plain data: entries and findings of every file."""
    (project.root / "log.md").write_text(LOG)
    data = json.loads(project("import", "log.md", "--json", code=4).stdout)
    (file,) = data["files"]
    assert (data["standing"], file["file"]) == ("reported, not evidence", "log.md")
    assert file["entries"][1]["verdict"] == "FAILED"
    assert [f["rule"] for f in file["findings"]] == ["share", "share"]


def test_markdown(project):
    """A page in a new file; an existing one is never overwritten."""
    (project.root / "log.md").write_text(LOG + "\n<script>x</script> `| a`\n")
    project("import", "log.md", "--markdown", "out.md", code=4)
    page = (project.root / "out.md").read_text()
    assert "| 5:6 | error | share | 122 / 128 (95.5%) | 95.3% | 122/128 is 95.31%" in page
    assert "| 3:4 |  | Exp 1 — FAILED | FAILED |" in page
    assert "out.md" in project.refused("import", "log.md", "--markdown", "out.md")


@pytest.mark.parametrize("arguments", [[], ["none.md"], ["."]])
def test_mistakes(project, arguments):
    """No file, a missing one and a folder are told."""
    assert (
        "Name Markdown files" in (text := project.refused("import", *arguments))
        or "Give the path" in text
    )
