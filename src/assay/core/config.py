"""From plain data to checked, frozen dataclasses and back, and the digest that names them."""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import msgspec

from assay.core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyConfig = TypeVar("AnyConfig", bound="DataclassInstance")


def build(cls: type[AnyConfig], values: Mapping[str, Any], *, where: str) -> AnyConfig:
    """Build a configuration dataclass from plain values, checking every key and type.

    Args:
        cls: A frozen dataclass whose `__post_init__` raises `ConfigError` for a broken rule.
        values: Keys and values, as read from TOML or JSON.
        where: File and table, for the message.

    Raises:
        ConfigError: An unknown key (with the nearest known ones), a wrong type, a missing key,
            or a broken rule.
    """
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: {unknown_key(key, known)}")
    try:
        return msgspec.convert(dict(values), cls, strict=True)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise ConfigError(f"{where}: {error.__cause__}") from error
        raise ConfigError(
            f"{where}: {_type_message(error, values)}{_choices(cls, error)}"
        ) from error


def unknown_key(key: str, known: list[str], *, what: str = "key", plural: str = "") -> str:
    """The sentence for a key that does not exist: the nearest known ones, or all of them.

    Args:
        key: As given.
        known: Those that exist.
        what: What it names, such as "metric".
        plural: Of `what`, where that is not with an s.
    """
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    if near:
        return f"unknown {what} '{key}'. Did you mean {' or '.join(repr(n) for n in near)}?"
    listed = ", ".join(sorted(known)) or "none"
    return f"unknown {what} '{key}'. Known {plural or what + 's'}: {listed}."


def _type_message(error: msgspec.ValidationError, values: Mapping[str, Any]) -> str:
    text = str(error)
    if missing := re.search(r"missing required field `(.+?)`", text):
        return f"'{missing[1]}' is missing. Add {missing[1]} = …"
    rule, _, path = text.partition(" - at `$.")
    path = path.rstrip("`")
    if not path:
        return f"{rule.rstrip('.')}."  # A rule of the class itself, which names the key.
    value: Any = values
    for part in path.replace("[", ".[").split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
    if wrong := re.match(r"Expected `(.+?)`(.*), got", rule):
        kinds = " or ".join(KINDS.get(kind, kind) for kind in wrong[1].split(" | "))
        return f"{path} must be {kinds}{wrong[2]}; got {json.dumps(value, default=str)}."
    if unknown := re.match("Invalid enum value (.+)", rule):
        return f"{path}: unknown value {unknown[1]}."
    return f"{path}: {rule}; got {value!r}."


KINDS = {"array": "a list", "bool": "true or false", "float": "a number", "int": "a whole number",
         "null": "nothing", "object": "a table", "str": "a text"}  # fmt: skip
"""What msgspec calls a type → what a user does."""


def _choices(cls: type, error: msgspec.ValidationError) -> str:
    """What a field of fixed words takes, if that is what was wrong."""
    path = str(error).partition(" - at `$.")[2].rstrip("`").partition("[")[0]
    if "enum" not in str(error) or path not in get_type_hints(cls):
        return ""
    words = sorted({word for word in _words(get_type_hints(cls)[path]) if isinstance(word, str)})
    return f" It takes {', '.join(words)}."


def _words(hint: Any) -> Iterator[Any]:
    for part in get_args(hint):
        yield from _words(part) if get_args(part) else (part,)


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain values (tuples become lists), for JSON and for comparison."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a dataclass instance, got {type(config).__name__}")
    plain: dict[str, Any] = json.loads(canonical(asdict(config)))
    return plain


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values have equal text.

    Raises:
        ValueError: NaN or infinity, which JSON cannot name.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value: its identity, wherever it is computed."""
    return digest_text(canonical(value))


def digest_text(text: str) -> str:
    """SHA-256 (hex) of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_plain(value: Any, where: str, *, finite: bool) -> None:
    """Refuse what JSON has no word for: it could be neither compared nor recorded.

    Raises:
        ConfigError: A date or time; or, with `finite`, NaN or an infinity.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_plain(item, f"{where} {key}", finite=finite)
    elif isinstance(value, list):
        for item in value:
            check_plain(item, where, finite=finite)
    elif isinstance(value, datetime | date | time):
        raise ConfigError(
            f'{where}: must not be a date or time; got {value}. Write it as "{value}".'
        )
    elif finite and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: must be a finite number; got {value}.")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win; a dotted key sets a value inside a nested table."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            target = merged
            *parents, last = name.split(".")
            for parent in parents:
                inner = target.get(parent)
                target[parent] = dict(inner) if isinstance(inner, Mapping) else {}
                target = target[parent]
            if isinstance(value, Mapping) and isinstance(target.get(last), Mapping):
                value = merge(target[last], value)
            target[last] = value
    return merged


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one level with dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{name}."))
        else:
            flat[name] = item
    return flat
