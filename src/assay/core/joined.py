"""What a program that joined its run really got: the environment that reached it.

`assay run` records what it gave to the command. Between that and the program may stand a script
that sets variables for every arm, which is how the leak of S0 came about; only the program itself
sees it. What it sees replaces what was given, and the difference is told as an event.
"""

from collections.abc import Mapping
from typing import Any

from assay.core.environment import describe_environment, salt_of
from assay.core.files import read_json, to_json, write_atomic
from assay.core.run import RunWriter, attempt_name
from assay.core.settings import Settings


def record_environment(writer: RunWriter, settings: Settings) -> None:
    """Compare this process's environment with the one on record, and record the real one.

    Raises:
        StoreError: The record cannot be read or written.
        ProvenanceError: The key of the digests cannot be read.
    """
    path = writer.folder / attempt_name("env.json", writer.attempt)
    if not path.exists():
        return
    given = read_json(path)
    named = dict.fromkeys([*given.get("values", {}), *given.get("redacted", [])])
    real = describe_environment(settings.environment, named, salt_of(settings.cache_dir))
    changes = {
        "set": sorted(real["digests"].keys() - given["digests"].keys()),
        "changed": _changed(given, real),
        "unset": sorted(given["digests"].keys() - real["digests"].keys()),
    }
    if real["key"] != given["key"] or not any(changes.values()):
        return
    write_atomic(path, to_json(real))
    told = "; ".join(f"{how} {', '.join(names)}" for how, names in changes.items() if names)
    writer.event(
        "environment",
        f"the program did not get the environment that it was given: {told}",
        **changes,
    )


def _changed(given: Mapping[str, Any], real: Mapping[str, Any]) -> list[str]:
    before, after = given["digests"], real["digests"]
    return sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
