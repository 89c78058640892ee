"""The live progress of an execution: a table in a terminal, a line now and then elsewhere."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from assay.cli.common import Output
from assay.core.launch.job import Message
from assay.core.run import RunState

WINDOW_S = 20.0
LINE_EVERY_S = 30.0
REFRESH_S = 0.25
RESERVED_LINES = 3
"""Of a terminal: the summary, what is not shown, and the cursor's line."""


@dataclass(slots=True)
class _Row:
    state: RunState
    step: int = 0
    total: int = 0
    shown: dict[str, float | str] = field(default_factory=dict)
    done: bool = False

    @property
    def name(self) -> str:
        record = self.state.record
        cell = "" if record.cell_label == "all" else f" {record.cell_label}"
        return f"{record.arm}{cell} seed {record.seed_label}"


class Display:
    """Shows each seed's progress and values, the rate in model-steps/s, and the time left."""

    def __init__(self, num_runs: int, console: Console | None = None) -> None:
        """Prepare for this many pending runs."""
        self.console = console or Output()
        self.num_runs = num_runs
        self.rows: dict[str, _Row] = {}
        self._points: deque[tuple[float, int]] = deque()
        self._steps = 0
        self._said = self._drawn = time.monotonic()
        # Drawn by `tick`, not by a thread of rich: one thread sees the rows whole.
        self._live = (
            Live(
                console=self.console,
                auto_refresh=False,
                transient=True,
                get_renderable=self._table,
            )
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, states: Sequence[RunState]) -> None:
        """A cohort's worker has started."""
        for state in states:
            self.rows[state.record.id] = _Row(state)
        first = states[0].record
        cell = "" if first.cell_label == "all" else f" {first.cell_label}"
        seeds = ", ".join(s.record.seed_label for s in states)
        self._say(f"started {first.arm}{cell}: seed {seeds}")

    def progress(self, message: Message) -> None:
        """A run tells how far it is."""
        row = self.rows.get(message.run)
        if row is None:
            return
        # The first message of a resumed run tells where it stands, not what was computed.
        if row.total:
            self._steps += max(0, message.step - row.step)
        self._points.append((time.monotonic(), self._steps))
        row.step, row.total, row.shown = message.step, message.total, message.shown

    def finished(self, state: RunState) -> None:
        """A run's attempt has ended."""
        row = self.rows[state.record.id]
        row.state, row.done = state, True
        if state.status == "completed":
            self._say(f"{row.name}: completed {_values(row)}".rstrip())
        elif state.status != "interrupted":
            self._say(f"{row.name}: {state.status}. {_last_line(state)}")

    def tick(self) -> None:
        """Called several times a second; prints a line now and then when there is no terminal."""
        now = time.monotonic()
        while len(self._points) > 1 and now - self._points[1][0] > WINDOW_S:
            self._points.popleft()
        if self._live is not None:
            if now - self._drawn > REFRESH_S:
                self._drawn = now
                self._live.refresh()
        elif now - self._said > LINE_EVERY_S and self.rows:
            for row in self._running():
                self.console.print(f"  {row.name}: {_place(row)} {_values(row)}".rstrip())
            self._say(self._footer())

    @property
    def rate(self) -> float:
        """Model-steps a second over the last seconds, all runs together."""
        if len(self._points) < 2:
            return 0.0
        # Up to now: the seeds of a cohort report together, and two such points are no time apart.
        since, steps = self._points[0]
        elapsed = time.monotonic() - since
        return (self._steps - steps) / elapsed if elapsed > 0 else 0.0

    def _running(self) -> list[_Row]:
        return [row for row in self.rows.values() if not row.done]

    def _left_s(self) -> float | None:
        totals = [r.total for r in self.rows.values() if r.total]
        if not totals or self.rate <= 0:
            return None
        left = sum(r.total - r.step for r in self._running())
        left += (self.num_runs - len(self.rows)) * max(totals)
        return left / self.rate

    def _footer(self) -> str:
        left = self._left_s()
        done = sum(r.done for r in self.rows.values())
        text = f"{done}/{self.num_runs} runs ended"
        if self.rate:
            text += f" · {self.rate:,.0f} model-steps/s"
        return text if left is None else f"{text} · about {duration(left)} left"

    def _table(self) -> Table:
        """What is running, as far as it fits, and a summary. What ended was said above it."""
        table = Table.grid(padding=(0, 2))
        for _ in range(4):
            table.add_column(no_wrap=True, overflow="ellipsis")
        running = self._running()
        room = max(1, self.console.height - RESERVED_LINES)
        for row in running[:room]:
            bar = ProgressBar(total=row.total or 1, completed=row.step, width=16)
            table.add_row(row.name, bar, _place(row), _values(row))
        whole = Table.grid()
        whole.add_column(no_wrap=True, overflow="ellipsis")
        whole.add_row(table)
        if len(running) > room:
            whole.add_row(f"and {len(running) - room} more running")
        whole.add_row(Text(self._footer(), style="bold"))
        return whole

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        self.console.print(text)


def _place(row: _Row) -> str:
    return f"step {row.step:,}/{row.total:,}" if row.total else "starting"


def _values(row: _Row) -> str:
    """What a run shows of itself; rates are the summary's, for all runs together."""
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.shown.items()
        if not name.endswith("/s")
    )


def _last_line(state: RunState) -> str:
    if state.end is not None and state.end.error:
        lines = state.end.error.strip().splitlines()
        line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
        if len(lines) > 2 and lines[1].startswith("Its last output"):
            line = f"{line} Its last line: {lines[-1].strip()[:200]}"
        return f"{line} (assay show {state.record.id})"
    return "`assay run` goes on from its last checkpoint."


def duration(seconds: float) -> str:
    """A time span for people: 45 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
