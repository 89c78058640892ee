"""Which code runs: the git state of a project, and digests of source folders.

Files that Assay itself writes are left out, so that writing the log or committing the ledger
between two arms does not make them differ in code.
"""

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from assay.core.errors import ProvenanceError

OWN_FILES = ("EXPERIMENTS.md", "figures", "ledger", "notes", "runs", "studies")
"""What belongs to Assay in a project: no change of these is a change of the code.

A study file is recorded otherwise: what it asks of a run is in `run.json`, and a freeze locks its
digest. Adding seeds to it must not part the new runs from the old.
"""

SOURCES = frozenset(
    (
        *(".py", ".pyi", ".pyx", ".pxd", ".c", ".cc", ".cpp", ".cxx", ".cu", ".cuh", ".h"),
        *(".hh", ".hpp", ".rs", ".go", ".so", ".pyd", ".dylib", ".jl"),
    )
)
PATHSPEC = ("--", ":/", *(f":(exclude){name}" for name in OWN_FILES))
# A user's git configuration must not change the bytes: all that it could set is set here.
CONFIG = (
    *("-c", "core.fsmonitor=false", "-c", "core.quotePath=true", "-c", "color.ui=false"),
    *("-c", "diff.suppressBlankEmpty=false"),
)
STATUS = (
    *("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all", "--no-renames"),
    *("--ignore-submodules=none", "--no-ahead-behind"),
)
DIFF = (
    *("diff", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", "--no-color"),
    *("--no-renames", "-U3", "--inter-hunk-context=0", "--diff-algorithm=myers"),
    *("--indent-heuristic", "--src-prefix=a/", "--dst-prefix=b/", "--submodule=short"),
    *("--ignore-submodules=none", "--no-relative", "-O/dev/null"),
)
TIMEOUT_S = 300


def code_state(root: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """The commit, and what differs from it.

    Args:
        root: The project folder.
        env: PATH, HOME and GIT_CONFIG* of it are git's environment.

    Returns:
        `vcs` ("git" or "none"), `reason` (why there is no repository or no commit), `commit`,
        `branch`, `dirty`, `diff_sha256` (of `diff_patch`; None when clean) and `tree_sha256` (of
        what is committed, Assay's own files left out).

    Raises:
        ProvenanceError: There is a repository that git cannot read.
    """
    state: dict[str, Any] = dict.fromkeys(
        ("reason", "commit", "branch", "dirty", "diff_sha256", "tree_sha256")
    )
    prefix, reason = _find_repository(root, env)
    if prefix is None:
        return {"vcs": "none", **state, "reason": reason}
    commit, branch, changed, untracked = _status(root, env)
    patch = _patch(root, env, commit, untracked) if changed or untracked else b""
    return {
        "vcs": "git",
        "reason": None if commit else "the repository has no commit yet",
        "commit": commit,
        "branch": branch,
        "dirty": bool(patch),
        "diff_sha256": hashlib.sha256(patch).hexdigest() if patch else None,
        "tree_sha256": _tree_sha256(root, prefix, env) if commit else None,
    }


def diff_patch(root: Path, env: Mapping[str, str]) -> bytes:
    """The text for `diff.patch`; its sha256 is `diff_sha256`; empty when clean.

    First a line `untracked SHA256 NAME` for each untracked file that is not ignored, then
    `git diff HEAD --binary`. `git apply` takes it as it is.

    Raises:
        ProvenanceError: As `code_state`.
    """
    if _find_repository(root, env)[0] is None:
        return b""
    commit, _, changed, untracked = _status(root, env)
    return _patch(root, env, commit, untracked) if changed or untracked else b""


def source_sha256(source: Sequence[Path]) -> str | None:
    """One digest over the source files in the given folders; None without any.

    Names are relative to the folder's parent, so that one package has one digest wherever it is
    installed.

    Raises:
        ProvenanceError: A folder or file does not exist or cannot be read.
    """
    if not source:
        return None
    lines = []
    for entry in source:
        if not entry.exists():
            raise ProvenanceError(
                f"The source of a run must exist: {entry} does not. Reinstall the package that it "
                "belongs to, or correct the path."
            )
        lines += [
            f"{path.relative_to(entry.parent).as_posix()}\0{file_sha256(path)}\n"
            for path in ([entry] if entry.is_file() else _source_files(entry))
        ]
    text = "".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _source_files(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__" and name[0] != "."]
        for name in files:
            if os.path.splitext(name)[1] in SOURCES:  # noqa: PTH122 - thousands of names
                yield Path(here, name)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file; remembered while its inode, size and times stay.

    Raises:
        ProvenanceError: It cannot be read.
    """
    try:
        status = path.stat()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return _file_sha256(str(path), key)
    except OSError as error:
        raise ProvenanceError(
            f"A file that a run depends on must be readable: {path}: {error.strerror}. Mend its "
            "permissions; if it is untracked and no part of the code, add it to .gitignore."
        ) from error


@lru_cache(maxsize=4096)
def _file_sha256(path: str, key: tuple[int, ...]) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find_repository(root: Path, env: Mapping[str, str]) -> tuple[str | None, str]:
    """The project's path inside its repository ("" at its top), or None and why there is none."""
    try:
        done = _git(root, env, "rev-parse", "--show-prefix", "--is-inside-work-tree")
    except FileNotFoundError:
        return None, "git is not installed, or not on the PATH"
    words = os.fsdecode(done.stderr).strip()
    if done.returncode and "not a git repository" in words and not _git_above(root):
        return None, "the project is not in a git repository"
    if done.returncode or not done.stdout.endswith(b"\ntrue\n"):
        raise _failed(root, words or "this folder is inside a repository without a work tree")
    prefix = os.fsdecode(done.stdout.removesuffix(b"true\n").removesuffix(b"\n"))
    if prefix and _git(root, env, "check-ignore", "-q", ".").returncode == 0:
        return None, "the enclosing git repository ignores the project's folder"
    return prefix, ""


def _git_above(root: Path) -> bool:
    """Whether a `.git` exists that git should have accepted; git stops at a file system's top."""
    here = root.resolve()
    device = here.stat().st_dev
    return any(
        (folder / ".git").exists() for folder in (here, *here.parents)
        if folder.stat().st_dev == device
    )  # fmt: skip


def _status(root: Path, env: Mapping[str, str]) -> tuple[str | None, str | None, bool, list[bytes]]:
    """Commit, branch, whether tracked files changed, and untracked names relative to `root`."""
    commit, branch, changed, untracked = None, None, False, []
    for entry in _output(root, env, *STATUS, *PATHSPEC).split(b"\0"):
        if entry.startswith(b"# branch.oid ") and not entry.endswith(b"(initial)"):
            commit = entry.split()[2].decode()
        elif entry.startswith(b"# branch.head ") and not entry.endswith(b"(detached)"):
            branch = os.fsdecode(entry.split(b" ", 2)[2])
        elif entry.startswith((b"1 ", b"2 ", b"u ")):
            changed = True
        elif entry.startswith(b"? "):
            untracked.append(entry[2:])
    return commit, branch, changed, sorted(untracked)


def _patch(root: Path, env: Mapping[str, str], commit: str | None, untracked: list[bytes]) -> bytes:
    top = root
    if untracked:
        top = Path(os.fsdecode(_output(root, env, "rev-parse", "--show-toplevel"))[:-1])
    lines = []
    for name in untracked:
        quoted = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        lines.append(b"untracked %s %s\n" % (_untracked(top / os.fsdecode(name)), quoted))
    if commit is None:
        empty = _output(root, env, "hash-object", "-t", "tree", "/dev/null").decode().strip()
    return b"".join(lines) + _output(root, env, *DIFF, commit or empty, *PATHSPEC)


def _untracked(path: Path) -> bytes:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return b"vanished"
    if stat.S_ISLNK(mode):
        return b"link:" + hashlib.sha256(os.fsencode(path.readlink())).hexdigest().encode()
    if stat.S_ISDIR(mode):
        return b"repository"
    return file_sha256(path).encode() if stat.S_ISREG(mode) else b"special"


def _tree_sha256(root: Path, prefix: str, env: Mapping[str, str]) -> str:
    """Digest of the committed tree without Assay's files: level by level down to the project."""
    parts = prefix.strip("/").split("/") if prefix else []
    total = hashlib.sha256()
    for depth in range(len(parts) + 1):
        folder = "".join(f"{part}/" for part in parts[:depth])
        own = OWN_FILES if depth == len(parts) else parts[depth : depth + 1]
        skipped = {os.fsencode(folder + name) for name in own}
        at = [folder] if folder else []
        for line in _output(root, env, "ls-tree", "-z", "--full-tree", "HEAD", *at).split(b"\0"):
            if line.partition(b"\t")[2] not in skipped:
                total.update(line + b"\0")
    return total.hexdigest()


def _output(root: Path, env: Mapping[str, str], *arguments: str) -> bytes:
    done = _git(root, env, *arguments)
    if done.returncode:
        raise _failed(root, os.fsdecode(done.stderr).strip())
    return done.stdout


def _failed(root: Path, words: str) -> ProvenanceError:
    said = " ".join(words.split()) or "it said nothing"
    return ProvenanceError(
        f"A run needs to know its code, but git cannot read the repository of {root}: {said}. "
        "Mend the repository until `git status` works there (for dubious ownership: git config "
        "--global --add safe.directory FOLDER), or move the project out of it."
    )


def _git(root: Path, env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    # GIT_DIR and its like are set inside hooks and would point git at another repository.
    clean = {k: v for k, v in env.items() if k in ("PATH", "HOME", "XDG_CONFIG_HOME")}
    clean |= {k: v for k, v in env.items() if k.startswith("GIT_CONFIG")}
    clean |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    clean.setdefault("PATH", os.defpath)
    try:
        return subprocess.run(
            ["git", *CONFIG, *arguments],
            cwd=root,
            env=clean,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise _failed(root, f"no answer within {TIMEOUT_S} s to git {arguments[0]}") from error
    except PermissionError as error:
        raise _failed(root, str(error)) from error
