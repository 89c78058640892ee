"""Laws of the progress display: what it shows, that it fits, and what it says without a terminal."""

import io
import types

import pytest
from rich.console import Console

from assay.cli import display
from assay.cli.common import Output
from assay.cli.display import Display, duration
from assay.core.launch.job import Message
from assay.core.run import RunState, new_record

HEIGHT = 12


def state(seed: int, status: str = "open") -> RunState:
    record = new_record(
        study="s", arm="a", identity=str(seed), cell_label="all", seed_label=str(seed)
    )
    return RunState(
        path=None, record=record, status=status, attempts=1, starts={}, events=[], end=None,
        summary={}, spent={}, torn_lines=0,
    )  # fmt: skip


def terminal(width: int = 100) -> Output:
    console = Output(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.height = HEIGHT
    return console


def drawn(shown: Display) -> list[str]:
    console = Console(file=io.StringIO(), width=shown.console.width, height=HEIGHT)
    console.print(shown._table())
    return console.file.getvalue().rstrip("\n").split("\n")


def running(seeds: int, width: int = 100) -> tuple[Display, list[RunState]]:
    shown = Display(seeds, terminal(width))
    states = [state(seed) for seed in range(seeds)]
    shown.started(states)
    return shown, states


def say(shown: Display, state: RunState, step: int) -> None:
    shown.progress(
        Message(run=state.record.id, step=step, total=100, shown={"loss": 0.5, "exact match": 0.25})
    )


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The display's clock, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(display, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_each_seed_shows_its_values(now):
    """A seed's line has its step, loss and exact match; the last line the rate and time left.

    40 steps in 5 seconds, counted from the first report of each; 140 are left.
    """
    shown, states = running(2)
    for step in (10, 20, 30):
        for one in states:
            say(shown, one, step)
            now[0] += 1
    now[0] -= 1
    lines = drawn(shown)
    assert "30/100" in lines[0]
    assert "loss 0.5  exact match 0.25" in lines[0]
    assert "0/2 runs ended · 8 model-steps/s · about 18 s left" in lines[-1]


def test_the_rate_survives_a_silence(now):
    """Seeds report together, then nothing for long: no rate from two reports of one moment."""
    shown, states = running(2)
    for second in range(200):
        now[0] = float(second)
        if second <= 60:
            for one in states:
                say(shown, one, second)
                now[0] += 1e-6
        shown.tick()
        assert shown.rate <= 2.1


def test_a_run_that_has_told_nothing_is_starting(now):
    """Not "step 0/0", in the table and in lines."""
    shown, _ = running(1)
    assert "starting" in drawn(shown)[0]
    console = Output(file=io.StringIO())
    with Display(1, console) as piped:
        piped.started([state(1)])
        now[0] = 100.0
        piped.tick()
    assert "a seed 1: starting\n" in console.file.getvalue()


def test_many_runs_fit_the_terminal():
    """With more runs than lines, the table is no higher than the terminal and tells the rest."""
    shown, states = running(100)
    for one in states:
        say(shown, one, 10)
    lines = drawn(shown)
    assert len(lines) < HEIGHT
    assert "and 91 more running" in lines[-2]


def test_lines_are_not_wider_than_the_terminal():
    """In a narrow terminal lines are cut, not wrapped: wrapped lines would scroll."""
    shown, states = running(3, width=40)
    for one in states:
        say(shown, one, 10)
    lines = drawn(shown)
    assert len(lines) == 4
    assert max(map(len, lines)) <= 40


def test_ended_runs_leave_the_table():
    """What ended is said once above the table and is no longer in it."""
    shown, states = running(2)
    say(shown, states[0], 100)
    done = state(0, "completed")
    object.__setattr__(done, "record", states[0].record)
    shown.finished(done)
    assert "a seed 0: completed loss 0.5" in shown.console.file.getvalue()
    assert not any("seed 0" in line for line in drawn(shown))
    assert "1/2 runs ended" in drawn(shown)[-1]


def test_resumed_run_does_not_count_what_was_computed_before(now):
    """The steps before a checkpoint are no speed of this execution."""
    shown, states = running(1)
    for now[0], step in enumerate((5000, 5001, 5002)):
        say(shown, states[0], step)
    assert shown.rate == 1.0


def test_without_a_terminal_a_line_now_and_then(now):
    """Piped output has plain lines every half minute, no control characters."""
    console = Output(file=io.StringIO())
    with Display(1, console) as shown:
        one = state(1)
        shown.started([one])
        for second in range(100):
            now[0] = float(second)
            say(shown, one, second)
            shown.tick()
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert text.count("a seed 1: step") == 3


def test_unknown_run_is_ignored():
    """Progress of a run that the display does not know ends nothing."""
    shown, _ = running(1)
    shown.progress(Message(run="else", step=1, total=2))


def test_duration_reads_well():
    """Seconds become what people say."""
    assert [duration(s) for s in (0.4, 59.6, 200, 7500)] == [
        "0 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
