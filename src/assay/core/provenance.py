"""What one attempt really was: code, command line, environment, packages, machine.

`capture` returns plain JSON data; `flat` turns it into dotted facts, one a package, a variable, a
command line option, which `assay.core.contract` compares between arms. What only the child
process knows (data fingerprints, device, engine build) the runner adds under `data`, `device` and
`engine`; `flat` takes any such table along.

No secret is stored: a variable that nobody declared is kept as a keyed digest, and what looks
like a secret is kept so even when it is declared. Digests with one key can be compared, so a
variable that leaked into one arm is seen without its value.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from assay.core.environment import (
    clean_environment,
    describe_environment,
    is_option,
    redact_argv,
    salt_of,
)
from assay.core.errors import ProvenanceError
from assay.core.vcs import code_state, diff_patch, file_sha256, source_sha256

__all__ = [
    "argv_slots",
    "capture",
    "clean_environment",
    "diff_patch",
    "find_program",
    "flat",
    "salt_of",
]

MAX_SCRIPT_BYTES = 64 * 2**20


def capture(
    *,
    root: Path,
    argv: Sequence[str],
    env: Mapping[str, str],
    salt: bytes,
    declared: Mapping[str, str | None] | None = None,
    packages: Sequence[str] = (),
    source: Sequence[Path] = (),
    cwd: Path | None = None,
) -> dict[str, Any]:
    """Establish what an attempt is about to run.

    Args:
        root: The project folder; its repository is the code.
        argv: The command line, the program first (in a script: `sys.orig_argv`).
        env: The environment that the process has, all of it.
        salt: Key of the digests (`salt_of`).
        declared: Variables that the study names; their values are stored.
        packages: Distributions that decide the result; when given, a difference in any other
            is a remark and not a confound. Without it every distribution decides.
        source: Package folders or files that really run, for `code.source_sha256`.
        cwd: Working folder of the process, against which `argv` names files; `root` by default.

    Returns:
        `schema`; `code` {vcs, reason, commit, branch, dirty, diff_sha256, tree_sha256,
        source_sha256}; `argv`; `binary` {name, sha256}; `scripts` [{slot, name, sha256}];
        `environment` {values, digests, redacted, volatile, key}; `python` {version,
        implementation}; `packages` {decisive, installed, sha256}; `machine` {host, os, kernel,
        arch, cpu, cores, memory_gib, devices}.

    Raises:
        ProvenanceError: Something of it cannot be established.
    """
    folder = cwd or root
    program = find_program(argv[0], env, folder) if argv else None
    return {
        "schema": 1,
        "code": code_state(root, env) | {"source_sha256": source_sha256(source)},
        "argv": redact_argv(argv, env, salt),
        "binary": {"name": program.name, "sha256": file_sha256(program)} if program else None,
        "scripts": _scripts(argv, root, folder),
        "environment": describe_environment(env, declared or {}, salt),
        "python": {
            "version": ".".join(map(str, sys.version_info[:3])),
            "implementation": sys.implementation.name,
        },
        "packages": _packages(packages, _site_folders(program)),
        "machine": _machine(),
    }


def flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted facts for comparison, such as `code.commit`, `argv.--lr`, `packages.torch`.

    Packages that do not decide are `installed.NAME`; an undeclared or secret variable is
    `env.NAME = "hmac:KEY:DIGEST"`, and `hmac.NAME` is the digest of every variable, so that a
    declared value can be compared with one that leaked; a script is `scripts.SLOT` for the slot of the command line
    that names it. Any further table of `provenance` (data, device, engine) is taken along.
    """
    known = ("schema", "argv", "scripts", "environment", "packages", "binary")
    facts: dict[str, Any] = {}
    _flatten({k: v for k, v in provenance.items() if k not in known}, "", facts)
    facts.pop("code.reason", None)
    _flatten({"binary": provenance.get("binary") or {}}, "", facts)
    slots = list(argv_slots(provenance.get("argv", ())))
    for slot, value in slots:
        key = f"argv.{slot}"
        facts[key] = [*_listed(facts[key]), value] if key in facts else value
    facts["argv.order"] = " ".join(slot for slot, _ in slots)
    for script in provenance.get("scripts", ()):
        key = f"scripts.{script['slot']}"
        facts[key] = " ".join(filter(None, (facts.get(key), script["sha256"])))
    env = provenance.get("environment", {})
    _flatten({"env": env.get("values", {})}, "", facts)
    for name, value in env.get("digests", {}).items():
        facts[f"hmac.{name}"] = f"hmac:{env['key']}:{value}"
        facts.setdefault(f"env.{name}", facts[f"hmac.{name}"])
    packages = provenance.get("packages", {})
    _flatten({"packages": packages.get("decisive", {})}, "", facts)
    _flatten({"installed": packages.get("installed", {})}, "", facts)
    return facts


def _flatten(value: Mapping[str, Any], prefix: str, into: dict[str, Any]) -> None:
    for key, item in value.items():
        if isinstance(item, Mapping):
            _flatten(item, f"{prefix}{key}.", into)
        else:
            into[f"{prefix}{key}"] = item


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# ---- the command line ---------------------------------------------------------------------


def argv_slots(argv: Sequence[str]) -> Iterator[tuple[str, str | bool]]:
    """A command line as (slot, value): `--lr 3` is ("--lr", "3"), `lr=3` is ("lr", "3").

    A lone flag is True; other words are numbered, the program is "0". Which word belongs to
    which option is a guess (`--verbose file` reads as one), but the same guess for every run,
    and no word is lost.
    """
    position, words, i = 0, list(argv), 0
    options = True
    while i < len(words):
        word, i = words[i], i + 1
        name, equals, value = word.partition("=")
        if options and word == "--":
            options = False
        elif position and options and is_option(word):
            if equals:
                yield name, value
            elif i < len(words) and not is_option(words[i]):
                yield name, words[i]
                i += 1
            else:
                yield name, True
        elif position and equals and re.fullmatch(r"[+~]{0,2}[A-Za-z_][\w./@-]*", name):
            yield name, value
        else:
            yield str(position), word
            position += 1


def find_program(name: str, env: Mapping[str, str], cwd: Path) -> Path:
    """The executable that a child started with this environment and folder would be.

    Raises:
        ProvenanceError: There is none.
    """
    folders = [""] if "/" in name else env.get("PATH", os.defpath).split(os.pathsep)
    for folder in folders:
        path = cwd / folder / name
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise ProvenanceError(
        f"The command's program must be an executable file; {name!r} is none "
        f"({'from ' + str(cwd) if '/' in name else 'on the PATH of the run'}). Correct the "
        "command, build the program, or write its path."
    )


def _scripts(argv: Sequence[str], root: Path, cwd: Path) -> list[dict[str, str]]:
    found = []
    for number, (slot, value) in enumerate(argv_slots(argv)):
        if number == 0 or not isinstance(value, str) or not 0 < len(value) < 4096:
            continue
        path = cwd / value
        try:
            if path.is_file() and path.stat().st_size <= MAX_SCRIPT_BYTES:
                inside = path.is_relative_to(root)
                name = str(path.relative_to(root)) if inside else path.name
                found.append({"slot": slot, "name": name, "sha256": file_sha256(path)})
        except (OSError, ValueError):
            continue  # A word that cannot be a path is not a script.
    return found


# ---- packages and machine -----------------------------------------------------------------


def _site_folders(program: Path | None) -> tuple[str, ...]:
    """Where the packages of a run lie: those of its Python, or of ours for another program."""
    if program is not None and program.name.startswith("python"):
        # The link is not resolved: its place is what makes it a virtual environment.
        prefix = Path(os.path.normpath(program.absolute())).parent.parent
        if prefix != Path(sys.prefix) and (prefix / "pyvenv.cfg").is_file():
            return tuple(sorted(map(str, prefix.glob("lib*/python3*/site-packages"))))
    return tuple(sys.path)


def _packages(decisive: Sequence[str], folders: Sequence[str]) -> dict[str, Any]:
    """Versions by distribution name.

    Read from the names of the metadata folders: opening each file takes 40 ms for 100 packages.
    """
    found: dict[str, str] = {}
    for folder in folders:
        try:
            with os.scandir(folder or ".") as entries:
                names = sorted(entry.name for entry in entries)
        except OSError:
            continue  # A zip file or a folder that is not there.
        for name in names:
            stem, dot, kind = name.rpartition(".")
            if dot and kind in ("dist-info", "egg-info"):
                package, _, version = stem.partition("-")
                # As Python itself does: the first folder of the path wins.
                found.setdefault(_normal(package), re.sub(r"-py3.*", "", version))
    total = sorted(found.items())
    wanted = {_normal(name) for name in decisive}
    return {
        "decisive": {
            **{name: version for name, version in total if name in wanted or not wanted},
            **dict.fromkeys(sorted(wanted - found.keys())),
        },
        "installed": {n: v for n, v in total if wanted and n not in wanted},
        "sha256": hashlib.sha256(repr(total).encode()).hexdigest(),
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@lru_cache(maxsize=1)
def _machine_facts() -> tuple[tuple[str, Any], ...]:
    system = os.uname()
    host = system.nodename.split(".")[0]
    try:
        gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (OSError, ValueError):
        gib = None
    return (
        # Docker names a container by its id, which says nothing and changes at every start.
        ("host", "container" if re.fullmatch("[0-9a-f]{12}", host) else host),
        ("os", system.sysname),
        ("kernel", system.release),
        ("arch", system.machine),
        ("cpu", _first_match("/proc/cpuinfo", r"model name\s*:\s*(.+)") or system.machine),
        ("cores", os.cpu_count()),
        ("memory_gib", gib),
        ("devices", tuple(_devices(system.sysname, system.machine))),
    )


def _machine() -> dict[str, Any]:
    facts = dict(_machine_facts())
    return {**facts, "devices": list(facts["devices"])}


def _devices(system: str, arch: str) -> list[str]:
    """Accelerators by name, else "cpu". The driver's files are read: nvidia-smi takes seconds."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = [_first_match(str(card), r"Model:\s*(.+)") or "nvidia" for card in cards]
    if (system, arch) == ("Darwin", "arm64"):
        names.append("mps")
    return names or ["cpu"]


def _first_match(path: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text("utf-8", "replace"))
    except OSError:
        return None
    return found[1].strip() if found else None
