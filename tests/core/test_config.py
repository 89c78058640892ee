from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.core.config import build, canonical, digest, flatten, to_plain, unknown_key
from assay.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    width: int = 4

    def __post_init__(self):
        if self.width < 1:
            raise ConfigError(f"width must be at least 1; got {self.width}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    lr: float = 0.1
    sizes: tuple[int, ...] = ()
    inner: Inner = field(default_factory=Inner)
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        if self.lr < 0:
            raise ValueError(f"lr must be at least 0; got {self.lr}. Take 0.1.")


def message(values):
    with pytest.raises(ConfigError) as caught:
        build(Outer, values, where="x.toml [config]")
    return str(caught.value)


def test_unknown_key_names_place_and_nearest():
    """An unknown key is told with the place and the key that was probably meant."""
    assert message({"name": "n", "lrr": 1.0}) == (
        "x.toml [config]: unknown key 'lrr'. Did you mean 'lr'?"
    )


def test_wrong_type_names_key_and_value():
    """A wrong type is told with key, expected type and the value."""
    text = message({"name": "n", "lr": "fast"})
    assert text == 'x.toml [config]: lr must be a number; got "fast".'


def test_wrong_type_in_nested_table_names_path():
    """The path of a nested key is in the message."""
    text = message({"name": "n", "inner": {"width": 0.5}})
    assert "inner.width" in text
    assert "0.5" in text


def test_missing_key_is_named():
    """A required key that is missing is named with the way out."""
    assert message({}) == "x.toml [config]: 'name' is missing. Add name = …"


def test_broken_rule_keeps_its_sentence():
    """The sentence of a nested dataclass's own rule arrives, with the place before it."""
    text = message({"name": "n", "inner": {"width": 0}})
    assert text == "x.toml [config]: width must be at least 1; got 0."


def test_a_rule_reads_as_one_sentence():
    """A plain ValueError of the class, and a word that is none of those it takes: nothing around them."""
    text = message({"name": "n", "lr": -1.0})
    assert text == "x.toml [config]: lr must be at least 0; got -1.0. Take 0.1."
    text = message({"name": "n", "kind": "c"})
    assert text == "x.toml [config]: kind: unknown value 'c'. It takes a, b."


def test_nothing_is_coerced():
    """Text is no number and a number is no text; an int is a float."""
    assert build(Outer, {"name": "n", "lr": 1}, where="").lr == 1.0
    assert "name must be a text; got 3" in message({"name": 3})
    assert "lr must be a number; got true" in message({"name": "n", "lr": True})


def test_unknown_key_lists_all_when_none_is_near():
    """Without a near name all known ones are listed, by what they are."""
    text = unknown_key("zzz", ["b", "a"], what="study", plural="studies")
    assert text == "unknown study 'zzz'. Known studies: a, b."


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), plain))
def test_digest_does_not_see_order(value):
    """Equal tables have one digest, in whatever order their keys come."""
    try:
        expected = digest(value)
    except UnicodeEncodeError:
        return  # Half a surrogate pair has no UTF-8.
    assert digest(dict(reversed(value.items()))) == expected


def test_canonical_refuses_what_json_cannot_name():
    """NaN is refused, not written as a word that no JSON reader knows."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"x": float("nan")})


def test_to_plain_and_back():
    """A dataclass survives the way to plain data and back."""
    config = Outer(name="n", sizes=(1, 2), inner=Inner(width=3))
    assert to_plain(config)["sizes"] == [1, 2]
    assert build(Outer, to_plain(config), where="") == config


def test_to_plain_wants_an_instance():
    """A class is our own mistake, not a configuration."""
    with pytest.raises(TypeError, match="instance"):
        to_plain(Outer)


def test_flatten_uses_dots_and_keeps_lists():
    """Nested tables become dotted keys; lists stay values."""
    assert flatten({"a": {"b": {"c": 1}}, "d": [{"e": 2}]}) == {"a.b.c": 1, "d": [{"e": 2}]}
