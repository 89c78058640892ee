"""Environments of child processes, and how they are recorded without their secrets."""

import hashlib
import hmac
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.core.errors import ProvenanceError

PASSED = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"),
    )
)
"""What a child gets from its caller undeclared, beside `LC_*`.

PATH finds the program; HOME, USER and LOGNAME are who runs; LANG, LC_* and TZ are how text and
time are read; TMPDIR is where there is room; VIRTUAL_ENV belongs to PATH. LD_LIBRARY_PATH is what
`module load` sets on a cluster, where programs do not start without it, and CUDA_VISIBLE_DEVICES
keeps a job on the devices that were given to it. All are recorded and compared. PYTHONPATH and
LD_PRELOAD change what runs and are not passed: declare them.
"""

# Patterns are text, compiled at their first use: compiling them would double the import time.
BY_VALUE = (
    r"LANG|LANGUAGE|LC_\w+|TZ|PYTHONHASHSEED|CUDA_VISIBLE_DEVICES|CUBLAS_WORKSPACE_CONFIG|"
    r"NVIDIA_TF32_OVERRIDE|(OMP|MKL|OPENBLAS|NUMEXPR|VECLIB_MAXIMUM|BLIS|RAYON)_NUM_THREADS"
)
VOLATILE = (
    r"PWD|OLDPWD|SHLVL|_|SHELL|TERM\w*|COLORTERM|COLUMNS|LINES|WINDOWID|SSH_\w+|DISPLAY|"
    r"WAYLAND_DISPLAY|XAUTHORITY|DBUS_\w+|XDG_(SESSION|RUNTIME|VTNR|SEAT)\w*|PS[1-4]|LS_COLORS|"
    r"LESS\w*|PAGER|EDITOR|VISUAL|HIST\w+|PROMPT_COMMAND|VIRTUAL_ENV_PROMPT|MAIL|GPG_\w+|TMUX\w*|"
    r"STY|VSCODE_\w+|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_\w+|MAKEFLAGS|MAKELEVEL|MFLAGS|"
    r"PYTEST_CURRENT_TEST|ASSAY_(?!DATA$)\w+"
)
"""Names that change with the terminal, not with the experiment: listed, never compared."""

SECRET_NAME = (
    r"SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|BEARER|TOKEN(?!IZ)|APIKEY|AUTH(?!OR)|"
    r"(^|[^A-Z])(KEY|PWD)S?([^A-Z]|$)"
)
SECRET_VALUE = (
    r"://[^/\s:@]*:[^/\s@]+@|-----BEGIN|\b(gh[a-z]_|github_pat_|hf_|sk-|xox[a-z]-|glpat-|npm_|"
    r"pypi-|AIza|ya29\.|eyJ[\w-]+\.eyJ)[\w-]{8}|\bA(KIA|SIA)[0-9A-Z]{12}|[Bb]earer \S{8}"
)
DENSE = r"[A-Za-z0-9+_=-]{24,}"


def clean_environment(
    caller: Mapping[str, str], declared: Mapping[str, str | None]
) -> dict[str, str]:
    """The environment of a child: `PASSED`, `LC_*`, and what the study declares; nothing else.

    Args:
        caller: The environment of `assay run`.
        declared: Name → value; None passes the caller's value on.

    Raises:
        ProvenanceError: A variable is to be passed on, but the caller does not have it.
    """
    clean = {k: v for k, v in caller.items() if k in PASSED or k.startswith("LC_")}
    for name, value in declared.items():
        if value is None and name not in caller:
            raise ProvenanceError(
                f"[environment] {name} = true passes the caller's value on, but {name} is not "
                f"set here. Set it (export {name}=…), or write its value into the study."
            )
        clean[name] = caller[name] if value is None else value
    return clean


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable or option must not be stored by value."""
    upper = name.upper().replace("-", "_")
    if re.search(SECRET_NAME, upper):
        # MAX_TOKENS=512 counts; API_TOKENS=… does not.
        return not ("TOKENS" in upper and value.isdecimal() and len(value) < 10)
    if re.search(SECRET_VALUE, value):
        return True
    return any(
        re.search("[a-z]", w) and re.search("[A-Z]", w) and len(re.findall("[0-9]", w)) >= 3
        for w in re.findall(DENSE, value)
        if "_" not in w
    )


def describe_environment(
    env: Mapping[str, str], declared: Mapping[str, str | None], salt: bytes
) -> dict[str, Any]:
    """All variables for the record: each by its digest, declared and harmless ones by value too.

    Returns:
        `values`, `digests`, `redacted` (declared, but without value since they look like
        secrets), `volatile` (names only), and `key`: digests of one key can be compared.
    """
    values: dict[str, str] = {}
    digests: dict[str, str] = {}
    redacted: list[str] = []
    volatile: list[str] = []
    for name, value in sorted(env.items()):
        stored = name in declared or re.fullmatch(BY_VALUE, name)
        if name not in declared and re.fullmatch(VOLATILE, name):
            volatile.append(name)
            continue
        digests[name] = keyed_digest(value, salt)
        if stored and looks_secret(name, value):
            redacted.append(name)
        elif stored:
            values[name] = value
    return {
        "values": values,
        "digests": digests,
        "redacted": redacted,
        "volatile": volatile,
        "key": keyed_digest("assay key id", salt)[:6],
    }


def is_option(word: str) -> bool:
    """Whether a word of a command line is an option: `-x` and `--x`, but no number."""
    return len(word) > 1 and word[0] == "-" and not (word[1].isdigit() or word[1] == ".")


def redact_argv(argv: Sequence[str], env: Mapping[str, str], salt: bytes) -> list[str]:
    """The command line without secrets: each is replaced by its keyed digest."""
    # PWD sounds like a password and is on many command lines.
    named = {k: v for k, v in env.items() if len(v) >= 8 and not re.fullmatch(VOLATILE, k)}
    secrets = sorted({v for k, v in named.items() if looks_secret(k, v)}, key=len, reverse=True)
    clean: list[str] = []
    option = ""
    for word in argv:
        name, equals, value = word.partition("=")
        if equals and looks_secret(name, value):
            word = f"{name}=<redacted {keyed_digest(value, salt)}>"
        elif re.search(SECRET_VALUE, word) or (option and looks_secret(option, word)):
            word = f"<redacted {keyed_digest(word, salt)}>"
        for secret in secrets:
            word = word.replace(secret, f"<redacted {keyed_digest(secret, salt)}>")
        option = name if is_option(name) and not equals else ""
        clean.append(word)
    return clean


def keyed_digest(value: str, salt: bytes) -> str:
    """HMAC-SHA256, 12 hex digits: equal values show as equal, and nothing more is told."""
    raw = value.encode("utf-8", "surrogateescape")
    return hmac.new(salt, raw, hashlib.sha256).hexdigest()[:12]


def salt_of(root_cache: Path) -> bytes:
    """The key of this user's digests, created once, mode 600, also by 16 processes at once.

    Raises:
        ProvenanceError: It cannot be read or created.
    """
    path = root_cache / "salt"
    draft = root_cache / f"salt.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        if not path.exists():
            root_cache.mkdir(parents=True, exist_ok=True)
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(os.urandom(32))
            try:
                # A link appears whole or not at all, and the first process wins.
                path.hardlink_to(draft)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        salt = path.read_bytes()
    except OSError as error:
        raise ProvenanceError(
            f"The key for digests of the environment cannot be kept in {root_cache}: {error}. Set "
            "ASSAY_CACHE to a folder on local disk that you can write."
        ) from error
    if len(salt) != 32:
        raise ProvenanceError(
            f"{path} must hold 32 bytes; it holds {len(salt)}. Delete it: a new key is made, and "
            "undeclared variables of older runs can then not be compared with newer ones."
        )
    return salt
