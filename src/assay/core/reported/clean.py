"""Markdown marks blanked out, character for character, so that places stay what they are."""

import re

MONTH = (
    "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    "|Sep(?:t(?:ember)?)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)
DATE = (
    r"\d{4}[-/.](?:0[1-9]|1[0-2])[-/.](?:0[1-9]|[12]\d|3[01])"
    r"(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?"
    rf"|\d{{1,2}} {MONTH}\.?(?: \d{{4}})?|{MONTH}\.? \d{{1,2}}(?:, ?\d{{4}})?(?![\d.])"
    rf"|{MONTH}\.? \d{{4}}"
)
DATES = re.compile(rf"(?<![\w.])(?:{DATE})(?!\w)")
MARKS = re.compile(
    rf"(?P<date>(?<![\w.])(?:{DATE})(?!\w))"
    r"|(?P<clock>(?<![\w.:])\d{1,2}:\d{2}(?::\d{2})?(?![\w:]))"
    r"|(?P<address>\b(?:https?|ftp|file)://[^\s|<>)\]]{1,2000})"
    r"|(?P<target>\]\([^()\s]{0,1000}(?:\([^()\s]{0,300}\)[^()\s]{0,300})?\))"
    r"|(?P<tag></?[A-Za-z][^<>]{0,300}>)"
    r"|(?P<struck>~~[^~]{1,500}~~)"
    r"|(?P<command>`[^`]{0,400}(?:^|\s)--?[A-Za-z][^`]{0,2000}`)"
    r"|(?P<pm>&plusmn;|\\pm\b)"
    r"|(?P<arrow>-{1,2}>|=>|&rarr;|\\to\b|\\rightarrow\b)"
    r"|(?P<entity>&(?:nbsp|amp|lt|gt|minus|ndash|mdash|Delta|times);)"
    r"|(?P<mark>[`$*]{1,3}|__|\\)"
)
ENTITIES = {"&minus;": "−", "&ndash;": "–", "&mdash;": "—", "&Delta;": "Δ", "&times;": "×",
            "&lt;": "<", "&gt;": ">"}  # fmt: skip
SPACES = str.maketrans(dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u200a\u202f", " "))
HIDDEN = re.compile(
    r"<!--|<(?P<tag>script|style|svg|template|noscript|iframe|object)\b", re.IGNORECASE
)


HTML_TABLE = re.compile(r"<table\b", re.IGNORECASE)
DRAWN = str.maketrans(
    dict.fromkeys("│┃║", "|")
    | dict.fromkeys("─━═", "-")
    | dict.fromkeys("┌┬┐├┼┤└┴┘╭╮╰╯╔╦╗╠╬╣╚╩╝┏┳┓┣╋┫┗┻┛┡╇┩", "+")
)
"""Tables drawn with line characters, as those of ASCII."""


def drawn(text: str) -> str:
    """A text whose tables are drawn in ASCII instead of line characters."""
    return text.translate(DRAWN)


def clean(text: str) -> str:
    """A text of the same length in which only words and numbers are left.

    Blanked out: marks of emphasis and code, HTML tags, addresses, dates and times, what is struck
    through, and code that is a command (its numbers are settings).
    """
    return MARKS.sub(_blank, text.translate(SPACES))


def _blank(match: re.Match[str]) -> str:
    kind, size = match.lastgroup, len(match[0])
    if kind == "pm":
        return "±".ljust(size)
    if kind == "arrow":
        return "→".ljust(size)
    if kind == "entity":
        return ENTITIES.get(match[0], " ").ljust(size)
    return " " * size


def without_hidden(text: str) -> str:
    """A text without what a reader does not see: comments, scripts, styles; lines are kept.

    What is never closed is left as it is, and looked for once only: that keeps this linear.
    """
    pieces: list[str] = []
    position, unclosed = 0, set[str]()
    lower = text.lower()
    if len(lower) != len(text):  # A letter whose small form is longer: offsets would not match.
        lower = text
    while found := HIDDEN.search(text, position):
        tag = found["tag"]
        closing = f"</{tag.lower()}" if tag else "-->"
        end = -1 if closing in unclosed else lower.find(closing, found.end())
        if end < 0 or _in_code(text, found.start()):
            if end < 0:
                unclosed.add(closing)
            pieces.append(text[position : found.end()])
            position = found.end()
            continue
        end = text.find(">", end) + 1 or len(text)
        hidden = text[found.start() : end]
        pieces += [text[position : found.start()], _kept_lines(hidden)]
        position = end
    return "".join([*pieces, text[position:]])


def _in_code(text: str, place: int) -> bool:
    """Whether a mark stands inside inline code, as far as the last 200 characters tell."""
    line = text[max(0, place - 200) : place].rpartition("\n")[2]
    return line.count("`") % 2 == 1


def _kept_lines(hidden: str) -> str:
    """Blanks in place of characters; a newline stays one."""
    return "\n".join(" " * len(line) for line in hidden.split("\n"))
