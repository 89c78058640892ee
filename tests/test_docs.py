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
    """Files are saved and commands run in the order of the page; each ends as announced."""
    (tmp_path / "home").mkdir()
    (tmp_path / "assay.toml").touch()
    text = page.read_text("utf-8")
    places = sorted([*FILE.finditer(text), *SHELL.finditer(text)], key=lambda m: m.start())
    for match in places:
        if match.re is FILE:
            target = tmp_path / match[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(match[2], "utf-8")
            continue
        for command in match[2].strip().splitlines():
            done = run(command, tmp_path)
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
