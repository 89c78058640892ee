"""The documentation: every command in it runs, each page in an empty project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
WITH_COMMANDS = [page for page in PAGES if "```sh\n" in page.read_text("utf-8")]
FILE = re.compile(r"[Ss]ave as `([\w./-]+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
OUTPUT = re.compile(r"<!--output-->\n```text\n(.*?)```", re.DOTALL)
VARIES = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b|\b\d{4}-\d\d-\d\d\b")
"""Run ids and dates."""
SHELL = re.compile(r"(?:<!--exit (\d+)-->\n)?```sh\n(.*?)```", re.DOTALL)


def run(command: str, project: Path) -> subprocess.CompletedProcess[str]:
    """One command line, as a user would type it, with an empty home folder."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(project / "home"),
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_every_command_of_a_page_does_what_the_page_says(page: Path, tmp_path: Path) -> None:
    """Files are saved and commands run in the order of the page; each ends as announced.

    Output that a page shows was printed, or stands in the log, to the line.
    """
    (tmp_path / "home").mkdir()
    (tmp_path / "assay.toml").touch()
    text = page.read_text("utf-8")
    found = (match for pattern in (FILE, SHELL, OUTPUT) for match in pattern.finditer(text))
    printed = ""
    for match in sorted(found, key=lambda m: m.start()):
        if match.re is OUTPUT:
            log = tmp_path / "EXPERIMENTS.md"
            seen = printed + (log.read_text("utf-8") if log.exists() else "")
            there = {VARIES.sub("…", line).rstrip() for line in seen.splitlines()}
            for line in match[1].splitlines():
                assert line.strip() in ("", "…") or VARIES.sub("…", line).rstrip() in there, line
            continue
        if match.re is FILE:
            target = tmp_path / match[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(match[2], "utf-8")
            continue
        for command in match[2].strip().splitlines():
            done = run(command, tmp_path)
            printed += done.stdout
            assert done.returncode == int(match[1] or 0), f"{command}\n{done.stdout}{done.stderr}"


def test_the_pages_that_users_start_from_have_commands() -> None:
    """The test above has something to run."""
    assert {"bring-your-own-program", "write-an-engine", "storage"} <= {
        p.stem for p in WITH_COMMANDS
    }


def test_every_page_is_in_the_contents() -> None:
    """No page is left out of the table of contents."""
    contents = (ROOT / "docs" / "index.md").read_text("utf-8")
    for page in PAGES:
        assert page.stem == "index" or f"\n{page.stem}\n" in contents
