"""Hand-kept logs are read as they are: any bytes, any tables, in linear time, nothing executed."""

import socket
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.core.errors import StoreError
from assay.core.reported.audit import audit
from assay.core.reported.document import MAX_BYTES, parse, read_log
from assay.core.reported.entries import entries
from assay.core.reported.report import Imported, as_data, as_markdown, as_text

PIECES = ["|", "---", "| --- | --- |", "\n", "\n\n", "# ", "## Exp 3 FAILED", "```", "`", "**", "<br>", "<script>", "<!--", "-->",
          " 122 / 128 (95.5%)", "0.627 → 0.650 (+2.3%)", "mean of 1, 2, 3 = 4", "2 x 3 = 7", "±", "1,234,567", "1e400", "-", "Δ",
          "[a](../../../etc/passwd)", "https://example.org/x", "\x00", "\x1b[31m", "\u202e", "\ud7ff", "\t", "  ", "\\|", "\\",
          "best config: a=1.0", "X beats Y by +0.3 to +0.7", "steps=17; total=34", "- item", "1. item", "9" * 400, "+---+---+"]  # fmt: skip


def everything(text):
    """All that an import does with a text."""
    document = parse(text)
    log = Imported(document, entries(document), audit(document))
    as_data([log])
    return as_text([log]) + as_markdown([log])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=60).map("".join))
def test_any_text_is_read(text):
    """No text crashes an import; what a terminal or a page would obey is not printed."""
    printed = everything(text)
    assert not set(printed) & {"\x00", "\x1b", "\u202e"}
    assert "<script" not in printed


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_read(tmp_path_factory, data):
    """Bytes that are no UTF-8 are replaced, counted and said."""
    path = tmp_path_factory.mktemp("bytes") / "log.md"
    path.write_bytes(data)
    document = read_log(path)
    audit(document)
    entries(document)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        assert f"not {encoding.upper()}" in document.problems[0]
    else:
        assert document.problems == ()


def test_encodings(tmp_path):
    """Latin-1 is told; UTF-16 and a byte order mark are read."""
    path = tmp_path / "log.md"
    path.write_bytes("# Exp\n\n59.2±0.4 % réussi\n".encode("latin-1"))
    assert "not UTF-8: 2 place(s)" in read_log(path).problems[0]
    for encoding in ("utf-16", "utf-8-sig", "utf-8"):
        path.write_bytes("# Exp\r\n\r\nacc 59.2±0.4\r\n".encode(encoding))
        document = read_log(path)
        assert document.problems == ()
        assert [(v.name, v.value, v.spread) for e in entries(document) for v in e.values] == [
            ("acc", 59.2, 0.4)
        ]


def test_files_that_are_none(tmp_path):
    """A folder and a missing file are refused with the way out."""
    for path in (tmp_path, tmp_path / "none.md"):
        with pytest.raises(StoreError, match="Give the path of a Markdown"):
            read_log(path)


def test_too_much_is_said(tmp_path):
    """What lies behind the limit is not read, and that is said."""
    path = tmp_path / "big.md"
    with path.open("wb") as file:
        file.write(b"# Log\n\n- rank 122/128 (95.5%)\n")
        file.truncate(100 * 2**20)
    started = time.monotonic()
    document = read_log(path)
    assert "only the first 32 MiB were read" in document.problems[0]
    assert [finding.line for finding in audit(document)] == [3]
    assert MAX_BYTES == 32 * 2**20
    # No budget is tested here: an import that is not linear would not end at all.
    assert time.monotonic() - started < 300


GROWTH = {
    "bars": "| a ",
    "rulers": "| -- ",
    "rows": "| x | 1.2345 | (2) |\n",
    "numbers": "1,234,567, ",
    "list": "0.5, ",
    "products": "1 x ",
    "stars": "**",
    "ticks": "`a ",
    "brackets": "([",
    "comments": "<!--",
    "tags": "<a ",
    "hashes": "# ",
    "digits": "0",
    "dashes": "-",
    "blanks": " ",
    "arrows": "1 → ",
    "beats": "A beats B by ",
    "best": "best config ",
    "tables": "| a | b |\n|--|--|\n| x | 1.234 |\n\n",
    "deltas": "| a | b | vs c |\n|--|--|--|\n| x | 1.234 | +0.1 |\n\n",
    "output": "a 1.5 2.5\n",
    "fences": "```\n",
    "mean": "mean 1, ",
}


@pytest.mark.parametrize("name", GROWTH)
def test_time_grows_linearly(name):
    """Eight times the text takes about eight times as long, not sixty-four.

    This bounds growth, not speed: a quadratic step would take 64 times as long.
    """
    piece = GROWTH[name]

    def seconds(size):
        text = piece * (size // len(piece))
        times = []
        for _ in range(3):
            started = time.process_time()
            everything(text)
            times.append(time.process_time() - started)
        return min(times)

    small, large = seconds(10_000), seconds(80_000)
    assert large < 24 * max(small, 0.005), (small, large)


def test_ten_thousand_tables():
    """All of them are read, and the one row that is wrong is found."""
    table = "| run | loss | n |\n|---|---|---|\n| a | 1.25 | 3 |\n| b | 1.50 | 3 |\n\n"
    document = parse(table * 10_000 + "rank 122/128 (95.5%)\n")
    assert len(document.tables) == 10_000
    assert [finding.line for finding in audit(document)] == [50_001]


def test_nothing_is_opened(monkeypatch, tmp_path):
    """Links that climb out of the folder, scripts and commands stay text."""
    path = tmp_path / "log.md"
    path.write_text(
        "# Log\n\n[x](../../../../etc/passwd) [y](file:///etc/passwd) <script>alert(1)</script>\n\n"
        "```bash\nrm -rf /\n```\n\n![p](http://localhost:1/p.png) $(touch pwned) `; touch pwned`\n"
    )
    for module, name in ((subprocess, "Popen"), (socket, "socket")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something was started"))
    (entry,) = entries(document := read_log(path))
    audit(document)
    assert [link.target for link in entry.links][:2] == [
        "../../../../etc/passwd",
        "file:///etc/passwd",
    ]
    assert entry.commands == ["rm -rf /"]
    assert [file.name for file in tmp_path.iterdir()] == ["log.md"]


RAGGED = "| a | b | c |\n|---|---|---|\n| x | 1.5 |\n| y | 2.5 | 3 | 4 | 5 |\n|z|3.5|\n"


def test_ragged_rows():
    """Rows with too few or too many cells keep the columns of the others."""
    (table,) = parse(RAGGED).tables
    assert [[c.text for c in row.cells] for row in table.rows] == [
        ["x", "1.5", ""],
        ["y", "2.5", "3"],
        ["z", "3.5", ""],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "model      acc    loss\n---------  -----  -----\nbase       0.912  0.31\nours       0.931  0.28\n",
        "```\nmodel acc loss\nbase 0.912 0.31\nours 0.931 0.28\n```\n",
        "model\tacc\tloss\nbase\t0.912\t0.31\nours\t0.931\t0.28\n",
        "+-------+-------+------+\n| model | acc   | loss |\n+=======+=======+======+\n| base  | 0.912 | 0.31 |\n| ours  | 0.931 | 0.28 |\n",
        "┌───────┬───────┬──────┐\n│ model │ acc   │ loss │\n├───────┼───────┼──────┤\n│ base  │ 0.912 │ 0.31 │\n│ ours  │ 0.931 │ 0.28 │\n└───────┴───────┴──────┘\n",
        "```\n+-------+-------+------+\n| model | acc   | loss |\n+-------+-------+------+\n| base  | 0.912 | 0.31 |\n| ours  | 0.931 | 0.28 |\n+-------+-------+------+\n```\n",
        "model | acc | loss\n--- | --- | ---\nbase | 0.912 | 0.31\nours | 0.931 | 0.28\n",
        "# A ## B " + "text " * 60 + "| model | acc | loss | |---|---|---| | base | 0.912 | 0.31 | | ours | 0.931 | 0.28 | ## C end",
    ],
)  # fmt: skip
def test_tables_of_all_kinds(text):
    """Blanks, tabs, boxes, bars without edges, and tables in a log of one line."""
    (table,) = parse(text).tables
    assert list(table.head) == ["model", "acc", "loss"]
    assert [(row.label, *(c.quantity.value for c in row.cells[1:])) for row in table.rows] == [
        ("base", 0.912, 0.31),
        ("ours", 0.931, 0.28),
    ]


def test_a_long_row_is_no_flattened_log():
    """A row with cells of dashes is one row, however long."""
    row = "| run | " + "words " * 60 + "| -- | -- | 1.5 |\n"
    (table,) = parse("| a | b | c | d | e |\n|---|---|---|---|---|\n" + row).tables
    assert [c.text for c in table.rows[0].cells][2:] == ["--", "--", "1.5"]
