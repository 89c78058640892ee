"""`--set name=value`, as every engine's own command takes it."""

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from assay.cli.common import Output
from assay.core.config import AnyConfig, build, unknown_key
from assay.core.engine import Metric
from assay.core.errors import ConfigError

SetOption = Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True, negative="")]
"""The option itself."""


def assigned(settings: Sequence[str], example: str) -> dict[str, Any]:
    """Name → value of name=value texts; values are JSON, words need no quotes.

    Args:
        settings: As given.
        example: What to write instead of a text without `=`.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name=value; got {setting!r}. Write --set {example}.")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def checked(config: type[AnyConfig], values: Mapping[str, Any], *, listing: str) -> AnyConfig:
    """The configuration that options and --set together give.

    Args:
        config: Its dataclass.
        values: Name → value.
        listing: The command that describes all settings.

    Raises:
        ConfigError: An unknown name, or a value that breaks a rule; told with the command.
    """
    known = [field.name for field in fields(config)]
    for name in values:
        if name not in known:
            told = unknown_key(name, known, what="setting")
            raise ConfigError(f"--set: {told} `{listing}` describes them.")
    try:
        return build(config, values, where="settings")
    except ConfigError as error:
        raise ConfigError(f"{error} `{listing}` describes them.") from error


def numbers(option: str, text: str, what: str, example: str) -> list[int]:
    """Whole numbers with commas.

    Args:
        option: Which takes them.
        text: As given.
        what: They are.
        example: What to write, told with an error.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{option} takes {what} with commas, such as {example}; got {text!r}."
        ) from error


def seeds_of(text: str) -> list[int]:
    """The seeds of `--seeds`.

    Raises:
        ConfigError: They are not numbers from 0, each once.
    """
    found = numbers("--seeds", text, "seeds", "0,1,2")
    if len(set(found)) != len(found) or min(found) < 0:
        raise ConfigError(
            f"--seeds takes numbers from 0 on, each once, such as 0,1,2; got {text!r}."
        )
    return found


def described(config: type) -> list[tuple[str, Any, str]]:
    """Name, default and docstring of every field of a configuration dataclass."""
    says: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        says |= _docstrings(kind)
    types = get_type_hints(config)
    found = []
    for each in fields(config):
        choices = ", ".join(map(str, _choices(types[each.name])))
        told = says.get(each.name, "") + (f" One of: {choices}." if choices else "")
        found.append((each.name, each.default, told.strip()))
    return found


def _docstrings(config: type) -> dict[str, str]:
    """Of the fields that a class itself declares."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(body, ast.ClassDef)
    says: dict[str, str] = {}
    for field, after in pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                says[field.target.id] = " ".join(text.value.split())
    return says


def _choices(kind: Any) -> Sequence[object]:
    """Words that a setting, or each entry of a list of them, may be."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((_choices(part) for part in get_args(kind) if _choices(part)), ())


def tell_settings(config: type, metrics: Mapping[str, Metric]) -> None:
    """Print all settings with their defaults and meanings, and the metrics that a run reports.

    Args:
        config: The dataclass of the settings.
        metrics: Name → metric.
    """
    out, own = Output(), described(config)
    out.print(f"{len(own)} settings, with their defaults:\n")
    for name, default, says in own:
        out.print(f"{name} = {json.dumps(default)}\n    {says}")
    out.print(f"\n{len(metrics)} metrics that a run may report:\n")
    for name, metric in metrics.items():
        out.print(f"{name}\n    {metric.says}")
