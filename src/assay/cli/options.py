"""`--set name=value`, as every engine's own command takes it."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

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
