import hashlib
import json
import os
import shlex
import stat
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.core.errors import ProvenanceError
from assay.core.provenance import (
    _machine_facts,
    argv_slots,
    capture,
    clean_environment,
    diff_patch,
    flat,
    salt_of,
)

SALT = b"s" * 32
TOKEN = "hf_Abcdefghij0123456789"
PASSWORD = "correct-horse-battery"


@pytest.fixture
def env(tmp_path):
    """The environment of a child whose home is empty: no git configuration of this machine."""
    home = tmp_path / "home"
    home.mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}


@pytest.fixture
def project(tmp_path, env):
    """A repository with one commit."""
    root = tmp_path / "project"
    root.mkdir()
    git(root, env, "init", "-q", "-b", "main")
    (root / "train.py").write_text("print('hello')\n")
    (root / ".gitignore").write_text("build/\n")
    commit(root, env)
    return root


def git(root, env, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=root, env=env, check=True, capture_output=True
    )
    return done.stdout.decode().strip()


def commit(root, env, message="x"):
    git(root, env, "add", "-A")
    git(root, env, "commit", "-q", "-m", message)


def captured(root, env, argv=(sys.executable, "train.py"), **more):
    return capture(root=root, argv=list(argv), env=env, salt=SALT, **more)


def code(root, env):
    return captured(root, env)["code"]


# ---- code ---------------------------------------------------------------------------------


def test_a_clean_repository_is_its_commit(project, env):
    """Commit and branch are git's own words, and a clean tree has no diff."""
    state = code(project, env)
    assert state["commit"] == git(project, env, "rev-parse", "HEAD")
    assert (state["vcs"], state["branch"], state["dirty"]) == ("git", "main", False)
    assert state["diff_sha256"] is None
    assert diff_patch(project, env) == b""


@pytest.mark.parametrize("name", ["train.py", "new.py", "a folder/ü\n.py"])
def test_every_change_of_the_code_changes_the_diff(project, env, name):
    """A changed tracked file and a new untracked one both make the code another one."""
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).write_text("1\n")
    first = code(project, env)
    (project / name).write_text("2\n")
    second = code(project, env)
    assert first["dirty"]
    assert second["dirty"]
    assert first["diff_sha256"] != second["diff_sha256"]


def test_the_digest_is_that_of_the_patch(project, env):
    """`diff_sha256` is the sha256 of the bytes in diff.patch, so a stored patch proves itself."""
    (project / "train.py").write_text("changed\n")
    (project / "new.bin").write_bytes(bytes(range(256)))
    patch = diff_patch(project, env)
    assert hashlib.sha256(patch).hexdigest() == code(project, env)["diff_sha256"]
    assert b"new.bin" in patch


def test_the_patch_restores_the_code(project, env, tmp_path):
    """`git apply diff.patch` on the commit gives the tracked files as they ran."""
    (project / "train.py").write_bytes(b"\x00binary\xff")
    (project / "untracked.txt").write_text("u")
    (tmp_path / "diff.patch").write_bytes(diff_patch(project, env))
    git(project, env, "checkout", "-q", "--", "train.py")
    git(project, env, "apply", str(tmp_path / "diff.patch"))
    assert (project / "train.py").read_bytes() == b"\x00binary\xff"


@pytest.mark.parametrize(
    "name", ["EXPERIMENTS.md", "runs/x/run.json", "ledger/e.json", "notes/n.md", "figures/f.svg"]
)
def test_what_assay_writes_is_not_code(project, env, name):
    """Writing the log, or committing the ledger, leaves the code as it was."""
    before = code(project, env)
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text("generated")
    written = code(project, env)
    commit(project, env)
    committed = code(project, env)
    assert written == before
    assert committed["commit"] != before["commit"]
    assert committed["tree_sha256"] == before["tree_sha256"]


def test_a_commit_of_code_is_another_tree(project, env):
    """The tree's digest follows the code's content."""
    before = code(project, env)
    (project / "train.py").write_text("other\n")
    commit(project, env)
    assert code(project, env)["tree_sha256"] != before["tree_sha256"]


def test_a_project_inside_a_larger_repository_sees_all_of_it(project, env):
    """Code outside the project's folder is code too; only the project's own runs are not."""
    inner = project / "studies" / "one"
    inner.mkdir(parents=True)
    (inner / "study.toml").write_text("x")
    commit(project, env)
    before = code(inner, env)
    (inner / "runs").mkdir()
    (inner / "runs" / "r").write_text("x")
    assert code(inner, env) == before
    commit(project, env)
    assert code(inner, env)["tree_sha256"] == before["tree_sha256"]
    (project / "train.py").write_text("changed outside\n")
    assert code(inner, env)["dirty"]
    commit(project, env)
    assert code(inner, env)["tree_sha256"] != before["tree_sha256"]


def test_ignored_files_are_not_code(project, env):
    """What .gitignore names changes nothing."""
    before = code(project, env)
    (project / "build").mkdir()
    (project / "build" / "x").write_text("x")
    assert code(project, env) == before


def test_a_users_git_configuration_does_not_change_the_digest(project, env):
    """The same change, above the project's folder, has one digest under any git configuration."""
    (project / "train.py").write_text("".join(f"line {i}\n" for i in range(40)))
    (project / "inner").mkdir()
    (project / "inner" / "study.toml").write_text("")
    commit(project, env)
    (project / "train.py").write_text(
        "".join(f"line {i if i % 20 else 'new'}\n" for i in range(39))
    )
    (project / "new.py").write_text("")
    plain = code(project / "inner", env)
    (Path(env["HOME"]) / ".gitconfig").write_text(
        "[diff]\nnoprefix = true\nmnemonicPrefix = true\ncontext = 9\nexternal = false\n"
        "algorithm = patience\nrelative = true\ninterHunkContext = 30\n[color]\nui = always\n"
        "[status]\nshowUntrackedFiles = no\n[core]\nquotePath = false\n"
    )
    assert code(project / "inner", env) == plain


def test_a_repository_without_a_commit_says_so(tmp_path, env):
    """No commit: None, with the reason, and the files count as a change."""
    git(tmp_path, env, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, env, "add", "a.py")
    state = code(tmp_path, env)
    assert state["commit"] is None
    assert "no commit" in state["reason"]
    assert state["dirty"]


def test_no_repository_is_said(tmp_path, env):
    """Outside git: vcs is none, with the reason."""
    state = code(tmp_path, env)
    assert state["vcs"] == "none"
    assert "not in a git repository" in state["reason"]


def test_no_git_is_said(project, env, tmp_path):
    """Without git on the PATH: vcs is none, with the reason."""
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python3").symlink_to(sys.executable)
    state = captured(project, {**env, "PATH": str(bare)}, argv=["python3"])["code"]
    assert state["vcs"] == "none"
    assert "not installed" in state["reason"]


def test_a_project_that_the_repository_ignores_has_no_commit(project, env):
    """An ignored folder is not described by the commit around it."""
    (project / "build").mkdir()
    assert code(project / "build", env)["vcs"] == "none"


@pytest.mark.parametrize("damage", ["HEAD", "objects", "index"])
def test_a_broken_repository_is_an_error_in_gits_words(project, env, damage):
    """A repository that git cannot read stops the run, instead of passing for none."""
    (project / "train.py").write_text("changed\n")
    path = project / ".git" / damage
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file():
                file.chmod(0o600)
                file.write_bytes(b"garbage")
    else:
        path.write_bytes(b"garbage")
    with pytest.raises(ProvenanceError, match=r"git cannot read .*(fatal|error).*git status"):
        code(project, env)


def test_dubious_ownership_is_an_error_with_the_way_out(project, env):
    """A repository of someone else: git's words, and the command that trusts it."""
    foreign = {**env, "PATH": _fake_git(project.parent, "dubious ownership in repository")}
    with pytest.raises(ProvenanceError, match=r"dubious ownership.*safe\.directory"):
        code(project, foreign)


def _fake_git(folder, words):
    fake = folder / "fake"
    fake.mkdir()
    (fake / "git").write_text(f"#!/bin/sh\necho 'fatal: detected {words}' >&2\nexit 128\n")
    (fake / "git").chmod(0o755)
    return f"{fake}{os.pathsep}{os.environ['PATH']}"


def test_git_hooks_variables_do_not_move_the_repository(project, env, tmp_path):
    """GIT_DIR, set inside a hook, does not point the capture at another repository."""
    assert code(project, {**env, "GIT_DIR": str(tmp_path)}) == code(project, env)


def test_the_source_digest_is_of_content_and_names(tmp_path, env):
    """It changes with a byte or a name of a source file, and with nothing else."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("1")

    def digest():
        return captured(tmp_path, env, source=[package])["code"]["source_sha256"]

    first = digest()
    (package / "notes.txt").write_text("no source")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.py").write_text("cache")
    assert digest() == first
    (package / "kernel.so").write_bytes(b"\x00")
    second = digest()
    assert second != first
    (package / "kernel.so").rename(package / "kernel2.so")
    third = digest()
    assert third not in (first, second)
    (package / "a.py").write_text("2")
    assert digest() not in (first, second, third)


def test_a_missing_source_is_an_error(tmp_path, env):
    """A package that is not there stops the run."""
    with pytest.raises(ProvenanceError, match="must exist"):
        captured(tmp_path, env, source=[tmp_path / "gone"])


# ---- command line -------------------------------------------------------------------------


def test_the_binary_is_hashed_and_its_place_not_told(project, env, tmp_path):
    """The executable by name and sha256; the folders of this machine are not in it."""
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    result = captured(project, {**env, "PATH": f"{tool.parent}:{env['PATH']}"}, argv=["tool"])
    expected = hashlib.sha256(b"#!/bin/sh\n").hexdigest()
    assert result["binary"] == {"name": "tool", "sha256": expected}
    assert str(tmp_path) not in json.dumps(result)


def test_a_program_that_is_not_there_is_an_error(project, env):
    """What cannot be found cannot have provenance."""
    with pytest.raises(ProvenanceError, match=r"executable.*'no-such-tool'"):
        captured(project, env, argv=["no-such-tool"])


def test_every_file_on_the_command_line_is_hashed(project, env):
    """Scripts and configurations are facts by content, at the option that names them."""
    (project / "c.toml").write_text("lr = 1")
    argv = (sys.executable, "train.py", "--config=c.toml", "--out", "not-there", "--data", ".")
    facts = flat(captured(project, env, argv=argv))
    assert facts["scripts.1"] == hashlib.sha256(b"print('hello')\n").hexdigest()
    assert facts["scripts.--config"] == hashlib.sha256(b"lr = 1").hexdigest()
    assert not {"scripts.--out", "scripts.--data"} & facts.keys()


def test_a_changed_file_is_seen_although_digests_are_remembered(project, env):
    """The memory of digests never gives an old one for a file of the same length."""
    first = flat(captured(project, env))["scripts.1"]
    (project / "train.py").write_text("print('hallo')\n")
    assert flat(captured(project, env))["scripts.1"] != first


def test_options_become_facts():
    """Both spellings of an option are one fact; flags are true; other words are numbered."""
    argv = shlex.split("python train.py --lr 3e-4 --method=dfa -v --shift -3 seed=4 pos")
    assert dict(argv_slots(argv)) == {
        "0": "python", "1": "train.py", "--lr": "3e-4", "--method": "dfa", "-v": True,
        "--shift": "-3", "seed": "4", "2": "pos",
    }  # fmt: skip


def test_an_option_that_is_given_twice_keeps_both_values():
    """Programs that collect an option see both; so does the record, in order."""
    facts = flat({"argv": ["p", "--x", "1", "--x=2", "--x"]})
    assert facts["argv.--x"] == ["1", "2", True]


@given(
    st.lists(st.sampled_from(["--a", "--b", "--a=1", "k=v", "-3", "x", "-v", ""]), max_size=8),
    st.data(),
)
def test_another_word_is_another_fact(words, data):
    """No word of a command line is lost: replace any one, and some fact changes."""
    place = data.draw(st.integers(0, len(words)))
    one, two = (
        ["p", *words[:place], word, *words[place:]]
        for word in data.draw(
            st.sampled_from([("y", "z"), ("--a=2", "--a=3"), ("--a", "--c"), ("k=1", "k=2")])
        )
    )
    assert flat({"argv": one}) != flat({"argv": two})


@given(st.permutations(["--a", "x", "y", "k=v"]))
def test_another_order_is_another_fact(words):
    """Some programs read their options in order: the order is a fact too."""
    usual = ["--a", "x", "y", "k=v"]
    if words != usual:
        assert flat({"argv": ["p", *words]}) != flat({"argv": ["p", *usual]})


# ---- environment --------------------------------------------------------------------------


def test_a_child_gets_what_is_declared_and_little_else(env):
    """The child's environment is closed: a variable of the caller does not leak into it."""
    caller = {**env, "PSYCHE_DONT_SHARE_PREFIX": "1", "PYTHONPATH": "/x", "LC_ALL": "C", "A": "a"}
    assert clean_environment(caller, {"A": None, "B": "b"}) == {
        **env, "LC_ALL": "C", "A": "a", "B": "b",
    }  # fmt: skip


def test_a_variable_to_pass_on_must_be_there(env):
    """A declared pass-through that the caller lacks is an error that names it."""
    with pytest.raises(ProvenanceError, match=r"WANTED.*export WANTED"):
        clean_environment(env, {"WANTED": None})


def test_an_undeclared_variable_is_known_only_by_digest(project, env):
    """Its value is not stored, and two values are still told apart."""
    one = captured(project, {**env, "LEAKED": "value-one"})
    two = captured(project, {**env, "LEAKED": "value-two"})
    assert "value-one" not in json.dumps(one)
    assert flat(one)["env.LEAKED"] != flat(two)["env.LEAKED"]
    assert (
        flat(one)["env.LEAKED"]
        == flat(captured(project, {**env, "LEAKED": "value-one"}))["env.LEAKED"]
    )


def test_a_declared_variable_is_known_by_value(project, env):
    """What a study declares is part of its log."""
    result = captured(project, {**env, "FORCE_SAME_BATCH": "1"}, declared={"FORCE_SAME_BATCH": "1"})
    assert flat(result)["env.FORCE_SAME_BATCH"] == "1"


def test_digests_tell_nothing_without_the_key(project, env):
    """Another key gives another digest: a short value cannot be guessed from the record."""
    mine = captured(project, {**env, "PIN": "1234"})["environment"]["digests"]["PIN"]
    other = capture(root=project, argv=[], env={**env, "PIN": "1234"}, salt=b"t" * 32)
    assert other["environment"]["digests"]["PIN"] != mine
    assert len(mine) == 12


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", PASSWORD),
        ("OPENAI_API_KEY", PASSWORD),
        ("my_password", PASSWORD),
        ("AWS_SECRET", PASSWORD),
        ("AUTH", PASSWORD),
        ("SETTING", TOKEN),
        ("REMOTE", f"https://me:{PASSWORD}@example.org/x"),
        ("DB", f"postgresql://:{PASSWORD}@db/x"),
        ("HEADER", f"Bearer {PASSWORD}"),
        ("AWS_ACCESS", "AKIAIOSFODNN7EXAMPLE"),
        ("OPAQUE", "q7Rk2mXw9LbT4vNc8HsJ5dZf"),
    ],
)
def test_no_secret_is_stored_even_when_declared(project, env, name, value):
    """Names and values that look secret appear nowhere in the record, nor in its facts."""
    secret = PASSWORD if PASSWORD in value else value
    argv = (
        sys.executable,
        "train.py",
        f"--{name.lower()}",
        value,
        f"--url=a{value}b",
        f"x={value}",
    )
    result = captured(project, {**env, name: value}, argv=argv, declared={name: value})
    assert name in result["environment"]["redacted"]
    assert secret not in json.dumps([result, flat(result)])


def test_the_working_folder_is_no_secret(project, env):
    """PWD sounds like a password; a path below it stays readable on the command line."""
    script = str(project / "train.py")
    result = captured(project, {**env, "PWD": str(project)}, argv=(sys.executable, script))
    assert result["argv"][1] == script


def test_a_secret_of_the_environment_is_hidden_in_the_command_line(project, env):
    """A token that the shell expanded into the command is not stored either."""
    argv = (sys.executable, "train.py", "--login", f"user/{PASSWORD}")
    result = captured(project, {**env, "MY_TOKEN": PASSWORD}, argv=argv)
    assert PASSWORD not in json.dumps(result)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false"),
        ("MAX_TOKENS", "512"),
        ("AUTHOR", "me"),
        ("MODEL", "perceiver_mlm_H512L6C128_20260208_211633"),
        ("DATA", "/data/sets/Tiny-Shakespeare/v2"),
        ("COMMIT", "0b9ebb2d3f1c5a7788990aabbccddeeff0011223"),
    ],
)
def test_ordinary_settings_are_not_taken_for_secrets(project, env, name, value):
    """Settings stay readable: a redacted factor would make a log useless."""
    result = captured(project, {**env, name: value}, declared={name: value})
    assert flat(result)[f"env.{name}"] == value


def test_the_terminal_is_not_compared(project, env):
    """Another window, folder or session changes no fact; the names are listed."""
    other = {**env, "TERM": "xterm", "PWD": "/x", "SSH_TTY": "1", "ASSAY_RUN_DIR": "/r"}
    result = captured(project, other)
    assert flat(result) == flat(captured(project, env))
    assert result["environment"]["volatile"] == ["ASSAY_RUN_DIR", "PWD", "SSH_TTY", "TERM"]


# ---- the key ------------------------------------------------------------------------------


def test_sixteen_processes_agree_on_one_key(tmp_path):
    """Whoever comes first makes the key; everybody reads the same 32 bytes."""
    with ProcessPoolExecutor(16) as pool:
        keys = set(pool.map(salt_of, [tmp_path / "cache"] * 64))
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["salt"]


def test_a_key_that_another_process_made_meanwhile_is_kept(tmp_path, monkeypatch):
    """The loser of the race takes the winner's key and leaves nothing behind."""
    first = salt_of(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert salt_of(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["salt"]


def test_the_key_is_private(tmp_path):
    """Only its owner can read it."""
    salt_of(tmp_path)
    assert stat.S_IMODE((tmp_path / "salt").stat().st_mode) == 0o600


def test_a_damaged_key_is_an_error(tmp_path):
    """A truncated key is not used silently."""
    (tmp_path / "salt").write_bytes(b"short")
    with pytest.raises(ProvenanceError, match=r"32 bytes.*Delete it"):
        salt_of(tmp_path)


def test_a_cache_that_is_a_file_is_an_error(tmp_path):
    """Where no key can be kept, the way out is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ProvenanceError, match="ASSAY_CACHE"):
        salt_of(tmp_path / "file")


# ---- packages and machine -----------------------------------------------------------------


def test_packages_are_those_that_are_installed(project, env):
    """Names and versions agree with Python's own list."""
    lines = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import version as v;"
         "print(v('numpy'), v('hypothesis'), v('typing-extensions'))"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    facts = flat(captured(project, env))
    found = [facts[f"packages.{name}"] for name in ("numpy", "hypothesis", "typing-extensions")]
    assert found == lines


def test_deciding_packages_are_set_apart(project, env):
    """Named packages decide, a missing one is None, and the others are only on record."""
    facts = flat(captured(project, env, packages=["NumPy", "no_such.package"]))
    assert facts["packages.numpy"]
    assert facts["packages.no-such-package"] is None
    assert facts["installed.hypothesis"]
    assert "packages.hypothesis" not in facts


def test_another_pythons_packages_are_its_own(project, env, tmp_path):
    """A command that runs another virtual environment is recorded with that one's packages."""
    venv = tmp_path / "venv"
    site = venv / "lib" / "python3.11" / "site-packages"
    (site / "torch-9.9.dist-info").mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / "pyvenv.cfg").write_text("")
    facts = flat(captured(project, env, argv=[str(venv / "bin" / "python"), "train.py"]))
    assert facts["packages.torch"] == "9.9"
    assert "packages.numpy" not in facts


def test_the_record_is_plain_json(project, env):
    """What is captured survives JSON unchanged, and so do its facts."""
    result = captured(project, env, source=[project])
    assert json.loads(json.dumps(result)) == result
    assert result["machine"]["cores"] == os.cpu_count()
    assert result["machine"]["devices"]


def test_facts_take_along_what_the_runner_adds(project, env):
    """Data, device and engine become dotted facts without being known here."""
    more = {"data": {"train": "abc"}, "device": "cpu", "engine": {"name": "addition"}}
    facts = flat({**captured(project, env), **more})
    assert (facts["data.train"], facts["device"], facts["engine.name"]) == (
        "abc",
        "cpu",
        "addition",
    )


def test_a_containers_random_name_is_no_machine(project, env, monkeypatch):
    """A restarted container is the same machine: its name is its id, new at every start."""
    real = os.uname()
    seen = set()
    for name in ("0123456789ab", "ba9876543210"):
        monkeypatch.setattr(os, "uname", lambda n=name: type(real)((real[0], n, *real[2:])))
        _machine_facts.cache_clear()
        seen.add(captured(project, env)["machine"]["host"])
    _machine_facts.cache_clear()
    assert seen == {"container"}


def test_capturing_twice_gives_the_same(project, env):
    """Nothing in the record depends on the moment."""
    assert captured(project, env) == captured(project, env)


def test_importing_it_stays_cheap():
    """assay.init pays for this module: no torch, no numpy, no package metadata library."""
    heavy = subprocess.run(
        [sys.executable, "-c", "import sys, assay.core.provenance; print(*(set(sys.modules) & "
         "{'torch', 'numpy', 'msgspec', 'importlib.metadata', 'json', 'platform', 'shutil'}))"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert heavy == []
