"""The grammar of criteria: Python's syntax tree → eight node types of ours, by whitelist.

Python's parser reads the text (`ast.parse`: nothing is compiled or run). `build` then makes a
new tree from the few forms that the language has; anything else is an error with its position.
"""

import ast
import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from assay.core.errors import CriterionError

MAX_CHARACTERS = 2_000
MAX_NODES = 400
MANY = 20
"""Known names beyond which only the nearest are told, if there are such."""
MAX_DEPTH = 30
MAX_NUMBER = 1e30


@dataclass(frozen=True, slots=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True, slots=True)
class Measure:
    """A function of runs, such as `rate("acc", "d8", at_least=0.99, depth=4)`.

    Attributes:
        function: Its name, a key of `FUNCTIONS`.
        metric: Which metric it reads.
        arms: The arms named; empty where the arm comes from `every("arm", …)` or `any`.
        dim: The dimension along which `monotone` looks, else None.
        options: Keyword arguments of the function itself.
        cell: Grid values fixed by keyword.
        place: Where it stands, for messages.
    """

    function: str
    metric: str
    arms: tuple[str, ...]
    dim: str | None
    options: tuple[tuple[str, Any], ...]
    cell: tuple[tuple[str, Any], ...]
    place: str


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`left operator right` with +, -, * or /."""

    operator: str
    left: "Node"
    right: "Node"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A chain `a < b <= c …`: one operator fewer than operands."""

    operators: tuple[str, ...]
    operands: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Logic:
    """`and` or `or` of two or more parts."""

    operator: str
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Negation:
    """`not part`."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class Quantifier:
    """`every`, `any` (of a truth), `min` or `max` (of a number) over a dimension."""

    function: str
    dim: str
    part: "Node"
    place: str


Node = Number | Measure | Arithmetic | Comparison | Logic | Negation | Quantifier


@dataclass(frozen=True, slots=True)
class Function:
    """The call that a function of runs accepts.

    Attributes:
        arms: How many arms it takes after the metric.
        options: Keywords of its own; of thresholds exactly one is given, for `count` at most one.
        estimates: True when it estimates from seeds (and so belongs to the Holm family).
        takes_dim: True for a third positional argument that names a dimension.
        is_truth: True when it answers by itself and is not compared.
    """

    arms: int = 1
    options: tuple[str, ...] = ()
    estimates: bool = True
    takes_dim: bool = False
    is_truth: bool = False


THRESHOLDS = ("at_least", "at_most", "above", "below")
FUNCTIONS: Mapping[str, Function] = {
    "mean": Function(),
    "std": Function(),
    "rate": Function(options=THRESHOLDS),
    "rate_diff": Function(arms=2, options=THRESHOLDS),
    "diff": Function(arms=2),
    "ratio": Function(arms=2),
    "wins": Function(arms=2),
    "value": Function(estimates=False),
    "count": Function(options=THRESHOLDS, estimates=False),
    "monotone": Function(options=("direction",), takes_dim=True, is_truth=True),
}
QUANTIFIERS = ("every", "any", "min", "max")
_NAMES = (*FUNCTIONS, *QUANTIFIERS, "within")
_ARITHMETIC: Mapping[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}
_OPTIONS: Mapping[str, str] = {
    "rate": ", at_least= | at_most= | above= | below=number",
    "rate_diff": ", at_least= | at_most= | above= | below=number",
    "count": "[, at_least= | at_most= | above= | below=number]",
    "monotone": ', direction="up" | "down"',
}
_WORDS: Mapping[str, str] = {
    "Attribute": "an attribute (.)",
    "Subscript": "a subscript ([])",
    "Lambda": "lambda",
    "JoinedStr": "an f-string",
    "NamedExpr": "an assignment (:=)",
    "IfExp": "if … else",
    "Starred": "a * argument",
    "Constant": "this constant (only numbers stand by themselves)",
    "Tuple": "a tuple",
    "BinOp": "this operator",
    "UnaryOp": "this operator",
    "Call": "a call of something that is not a function name",
}
_COMPARISONS: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


def is_truth(node: Node) -> bool:
    """True for a node that is yes, no or open; False for one that is a number."""
    if isinstance(node, Measure):
        return FUNCTIONS[node.function].is_truth
    if isinstance(node, Quantifier):
        return node.function in ("every", "any")
    return isinstance(node, Comparison | Logic | Negation)


def build(text: str) -> Node:
    """Read a criterion; see `assay.core.criterion.parse`.

    Raises:
        CriterionError: The text is not in the language.
    """
    if len(text) > MAX_CHARACTERS:
        raise CriterionError(
            f"criterion: at most {MAX_CHARACTERS:,} characters; it has {len(text):,}. "
            "Split it into several claims."
        )
    body = _expression(text)
    _check_size(body)
    return _Builder(text).truth(body)


def _expression(text: str) -> ast.expr:
    # In parentheses, so that a criterion may go over several lines; positions are shifted back.
    wrapped = "(\n" + text.strip() + "\n)" if "\n" in text.strip() else text.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About escapes and `is`; neither gets any further.
            return ast.parse(wrapped, mode="eval").body
    except SyntaxError as error:
        lines = text.strip().split("\n")
        line, column = (error.lineno or 1) - (len(lines) > 1), error.offset or 0
        if line > len(lines) or column < 1:  # Python found the end where it wanted more.
            line, column = len(lines), len(lines[-1]) + 1
        raise CriterionError(
            f"criterion, {_place(max(line, 1), column)}: {error.msg} in {_quote(text)}. "
            'A criterion is one Python expression, such as mean("loss", "base") < 0.1.'
        ) from error
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise CriterionError(
            f"criterion: cannot be read ({error or 'nested too deeply'}) in {_quote(text)}. "
            "Shorten its numbers, remove control characters, or split it into several claims."
        ) from error


def _place(line: int, column: int) -> str:
    return f"column {column}" if line <= 1 else f"line {line}, column {column}"


def _quote(text: str) -> str:
    shown = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return repr(shown if len(shown) <= 120 else shown[:117] + "…")


def _check_size(body: ast.expr) -> None:
    waiting: list[tuple[ast.AST, int]] = [(body, 1)]
    seen = 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_NODES:
            raise CriterionError(
                f"criterion: at most {MAX_NODES} parts, nested at most {MAX_DEPTH} deep; this one "
                "has more. Split it into several claims."
            )
        waiting.extend((child, depth + 1) for child in ast.iter_child_nodes(node))


def unknown(kind: str, name: object, known: Iterable[object]) -> str:
    """The sentence for a name that does not exist: the nearest known ones, and all of them where that helps."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    if near and len(names) > MANY:
        return f"unknown {kind} {name!r}.{hint}"
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."


class _Builder:
    """Python's syntax tree → ours, by whitelist: what no branch names is an error."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.shift = int("\n" in text.strip())

    def place(self, node: ast.expr | ast.keyword) -> str:
        return _place(node.lineno - self.shift, node.col_offset + 1)

    def error(self, node: ast.expr | ast.keyword, message: str) -> CriterionError:
        return CriterionError(f"criterion, {self.place(node)}: {message} In {_quote(self.text)}.")

    def truth(self, node: ast.expr) -> Node:
        built = self.node(node)
        if not is_truth(built):
            raise self.error(node, "a number where yes or no is needed. Compare it, as in … > 0.")
        return built

    def number(self, node: ast.expr) -> Node:
        built = self.node(node)
        if is_truth(built):
            raise self.error(node, "yes or no where a number is needed.")
        return built

    def node(self, node: ast.expr) -> Node:
        match node:
            case ast.Constant() if type(node.value) in (int, float):
                return Number(self.constant(node))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                part = self.number(operand)
                if isinstance(part, Number):
                    return Number(-part.value)
                return Arithmetic("-", Number(0.0), part)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Negation(self.truth(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return Arithmetic(_ARITHMETIC[type(op)], self.number(left), self.number(right))
            case ast.BoolOp(op=op, values=values):
                word = "and" if isinstance(op, ast.And) else "or"
                return Logic(word, tuple(self.truth(value) for value in values))
            case ast.Compare(left=left, ops=ops, comparators=rest):
                if not all(type(op) in _COMPARISONS for op in ops):
                    raise self.error(node, "compare with <, <=, >, >=, == or != only.")
                operands = tuple(self.number(part) for part in (left, *rest))
                return Comparison(tuple(_COMPARISONS[type(op)] for op in ops), operands)
            case ast.Call(func=ast.Name(id=name)):
                return self.call(node, name)
            case ast.Name(id=name):
                raise self.error(
                    node, f"{name!r} is a bare name. Put metrics and arms in quotes: {name!r}."
                )
        raise self.error(
            node,
            f"{_WORDS.get(type(node).__name__, type(node).__name__)} is not part of the criterion "
            "language: numbers, + - * /, comparisons, and, or, not, and calls of "
            f"{', '.join(_NAMES)}.",
        )

    def constant(self, node: ast.expr) -> Any:
        """A number, text, True or False, written out; a minus sign may stand before a number."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self.constant(node.operand)
            if type(value) not in (int, float):
                raise self.error(node, "a minus sign needs a number.")
            return -value
        value = node.value if isinstance(node, ast.Constant) else None
        if type(value) not in (int, float, str, bool):
            raise self.error(node, "this argument must be a constant: a number or quoted text.")
        if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
            raise self.error(node, f"a number is at most {MAX_NUMBER:.0e}.")
        return value

    def string(self, node: ast.expr, what: str) -> str:
        value = self.constant(node)
        if not isinstance(value, str):
            raise self.error(node, f"{what} is given as quoted text; got {value!r}.")
        return value

    def call(self, node: ast.Call, name: str) -> Node:
        if name not in _NAMES:
            raise self.error(node, unknown("function", name, _NAMES))
        if name in FUNCTIONS:
            return self.measure(node, name)
        count = 3 if name == "within" else 2
        if len(node.args) != count or node.keywords:
            form = "within(x, low, high)" if name == "within" else f'{name}("dimension", …)'
            raise self.error(node, f"write {form}.")
        if name == "within":
            x, low, high = (self.number(arg) for arg in node.args)
            return Comparison(("<=", "<="), (low, x, high))
        build = self.truth if name in ("every", "any") else self.number
        dim = self.string(node.args[0], "the dimension")
        return Quantifier(name, dim, build(node.args[1]), self.place(node))

    def measure(self, node: ast.Call, name: str) -> Measure:
        function = FUNCTIONS[name]
        words = ["metric", *(("a", "b") if function.arms == 2 else ("arm",))]
        if function.takes_dim:
            words.append("dim")
        given, cell = self.arguments(node, words)
        options = tuple((k, v) for k, v in cell.items() if k in function.options)
        form = f"write {name}({', '.join(words)}{_OPTIONS.get(name, '')}, grid_key=value …)."
        optional = {"arm"} if function.arms == 1 else set()
        if missing := [w for w in words if w not in given and w not in optional]:
            raise self.error(node, f"{name} needs {' and '.join(missing)}; {form}")
        if function.options == THRESHOLDS and len(options) not in (
            (1,) if function.estimates else (0, 1)
        ):
            needs = "needs exactly one threshold" if function.estimates else "takes one threshold"
            raise self.error(node, f"{name} {needs}; {form}")
        for key, value in options:
            if key == "direction":
                if value not in ("up", "down"):
                    raise self.error(node, f'direction is "up" or "down"; got {value!r}.')
            elif isinstance(value, str | bool):
                raise self.error(node, f"{key} is a number; got {value!r}.")
        if "direction" in function.options and not options:
            raise self.error(node, f"{name} needs a direction; {form}")
        reserved = {*THRESHOLDS, "direction", "seed", *words} - set(function.options)
        if wrong := [key for key in cell if key in reserved]:
            raise self.error(node, f"{name} takes no {wrong[0]!r}; {form}")
        return Measure(
            function=name,
            metric=given["metric"],
            arms=tuple(given[w] for w in words if w in ("arm", "a", "b") and w in given),
            dim=given.get("dim"),
            options=options,
            # A keyword holds no dot; model__width is the grid key model.width.
            cell=tuple(
                (k.replace("__", "."), v) for k, v in cell.items() if k not in function.options
            ),
            place=self.place(node),
        )

    def arguments(self, node: ast.Call, words: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
        """Text arguments by name (positional or keyword), and the other keywords."""
        if len(node.args) > len(words):
            raise self.error(node, f"at most {len(words)} positional arguments: {words}.")
        given = {word: self.string(arg, word) for word, arg in zip(words, node.args, strict=False)}
        others: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.error(keyword, "** arguments are not part of the language.")
            if keyword.arg in given or keyword.arg in others:
                raise self.error(keyword, f"{keyword.arg} is given twice.")
            if keyword.arg in words:
                given[keyword.arg] = self.string(keyword.value, keyword.arg)
            else:
                others[keyword.arg] = self.constant(keyword.value)
        return given, others
