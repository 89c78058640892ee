import tempfile

import pytest

from assay.core.errors import ConfigError
from assay.core.settings import Settings, find_project


def read(start, **env):
    return Settings.from_environment(env, start=start)


@pytest.mark.parametrize("mark", ["assay.toml", "pyproject.toml", ".git"])
def test_project_is_the_nearest_mark_upwards(tmp_path, mark):
    """Any of the three marks makes a project, seen from any folder below."""
    (tmp_path / "outer").mkdir()
    (tmp_path / "assay.toml").touch()
    root = tmp_path / "outer" / "project"
    below = root / "a" / "b"
    below.mkdir(parents=True)
    (root / mark).touch()
    assert find_project(below) == root


def test_without_a_mark_the_folder_is_the_project(tmp_path, monkeypatch):
    """A folder without any mark above it is its own project."""
    monkeypatch.setattr("assay.core.settings.PROJECT_MARKS", ("no such mark",))
    assert find_project(tmp_path) == tmp_path


def test_root_is_taken_from_the_environment(tmp_path):
    """ASSAY_ROOT decides, wherever the command is given."""
    root = tmp_path / "elsewhere"
    root.mkdir()
    assert read(tmp_path, ASSAY_ROOT=str(root)).root == root


@pytest.mark.parametrize("name", ["ASSAY_ROOT", "ASSAY_DATA"])
def test_missing_folder_is_named(tmp_path, name):
    """A folder that is not there is an error with variable, value and way out."""
    with pytest.raises(ConfigError, match=rf"{name} must name an existing folder.*nowhere.*unset"):
        read(tmp_path, **{name: str(tmp_path / "nowhere")})


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_attempt_is_a_whole_number_from_one(tmp_path, value):
    """A bad ASSAY_ATTEMPT is refused."""
    with pytest.raises(ConfigError, match="ASSAY_ATTEMPT must be a whole number"):
        read(tmp_path, ASSAY_ATTEMPT=value)


def test_cache_prefers_assay_then_xdg_then_home(tmp_path):
    """The cache folder follows ASSAY_CACHE, XDG_CACHE_HOME, HOME, in this order."""
    env = {"HOME": "/h", "XDG_CACHE_HOME": "/x", "ASSAY_CACHE": "/a"}
    assert str(read(tmp_path, **env).cache_dir) == "/a"
    del env["ASSAY_CACHE"]
    assert str(read(tmp_path, **env).cache_dir) == "/x/assay"
    del env["XDG_CACHE_HOME"]
    assert str(read(tmp_path, **env).cache_dir) == "/h/.cache/assay"
    assert str(read(tmp_path).cache_dir) == f"{tempfile.gettempdir()}/.cache/assay"


def test_relative_cache_is_absolute(tmp_path, monkeypatch):
    """A relative cache folder is made absolute, so that a child finds the same one."""
    monkeypatch.chdir(tmp_path)
    assert read(tmp_path, ASSAY_CACHE="c").cache_dir == tmp_path / "c"


def test_two_projects_have_two_indexes(tmp_path):
    """The index's file depends on the project."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = read(tmp_path, ASSAY_ROOT=str(tmp_path / "a"), ASSAY_CACHE="/c")
    two = read(tmp_path, ASSAY_ROOT=str(tmp_path / "b"), ASSAY_CACHE="/c")
    assert one.index_path != two.index_path


def test_environment_is_a_copy(tmp_path):
    """Later changes of the environment do not reach settings that were read."""
    env = {"HOME": "/h"}
    settings = Settings.from_environment(env, start=tmp_path)
    env["HOME"] = "/other"
    assert settings.environment["HOME"] == "/h"
