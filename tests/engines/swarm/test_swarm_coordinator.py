"""The coordinator: its table, and random lives of a swarm."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from assay.engines.swarm.coordinator import (
    Phase,
    Settings,
    State,
    consensus,
    elected,
    has_parameters,
    join,
    leave,
    pause,
    quorum,
    resume,
    tick,
    witness,
)

SETTINGS = Settings(
    warmup_s=5, round_s=30, witness_s=5, cooldown_s=5, epoch_s=1000, min_clients=2, init_min_clients=3, witnesses=2, total_steps=4
)  # fmt: skip


def training(count=4, config=SETTINGS):
    """A swarm in its first round, at time 0."""
    state = State()
    for client in range(count):
        state = join(state, client, client % 2)
    state = tick(state, config, 0)
    for client in range(count):
        state = has_parameters(state, client)
    return tick(state, config, 0)


def one_round(state, now, config=SETTINGS, silent=()):
    """All witnesses report all members but the silent ones; the state after the round."""
    heard = {m.client: f"digest {m.client}" for m in state.members if m.client not in silent}
    for client in elected(state, config):
        if client not in silent:
            state = witness(state, config, client, heard)
    state = tick(state, config, now)
    if state.phase is Phase.TRAIN:
        state = tick(state, config, now + config.round_s)
    return tick(state, config, state.at + config.witness_s)


def test_a_swarm_waits_for_enough_members():
    """Fewer than init_min_clients wait; then everybody fetches the parameters."""
    state = join(join(State(), 0, 0), 1, 1)
    assert tick(state, SETTINGS, 100).phase is Phase.WAITING
    state = tick(join(state, 2, 1), SETTINGS, 101)
    assert (state.phase, [m.client for m in state.members]) == (Phase.WARMUP, [0, 1, 2])
    assert tick(has_parameters(state, 0), SETTINGS, 102).phase is Phase.WARMUP


def test_a_further_time_is_waited_for_more_clients():
    """Enough clients wait for others for as long as the settings say."""
    late = replace(SETTINGS, waiting_s=10)
    state = State()
    for client in range(3):
        state = join(state, client, 0)
    assert tick(state, late, 9.9).phase is Phase.WAITING
    assert tick(state, late, 10).phase is Phase.WARMUP


def test_who_has_no_parameters_does_not_train():
    """After the warm-up's time the others begin without them; too few go back to waiting."""
    state = State()
    for client in range(4):
        state = join(state, client, 0)
    state = tick(state, SETTINGS, 0)
    slow = has_parameters(has_parameters(state, 0), 2)
    assert [m.client for m in tick(slow, SETTINGS, 5).members] == [0, 2]
    alone = tick(has_parameters(state, 0), SETTINGS, 5)
    assert alone.phase is Phase.WAITING


def test_rounds_until_the_last():
    """Witnesses end a round early; the witness time is always waited; the last round cools down."""
    state = training()
    for step in range(1, 5):
        state = one_round(state, state.at + 1)
        assert state.step == step
        assert set(state.agreed) == {0, 1, 2, 3}
    assert state.phase is Phase.COOLDOWN
    assert tick(state, SETTINGS, state.at + 5).phase is Phase.FINISHED


def test_without_witnesses_a_round_ends_by_time_and_the_epoch_with_it():
    """No report at all: nothing is agreed, and all members are withdrawn."""
    state = training()
    assert tick(state, SETTINGS, 29).phase is Phase.TRAIN
    state = tick(tick(state, SETTINGS, 30), SETTINGS, 35)
    assert (state.phase, state.agreed, state.members) == (Phase.COOLDOWN, {}, ())


def test_a_silent_member_is_dropped_after_two_rounds():
    """One missed round is forgiven, two are not; who is dropped joins again with the next epoch."""
    state = training()
    silent = next(m.client for m in state.members if m.client not in elected(state, SETTINGS))
    state = one_round(state, state.at + 1, silent={silent})
    assert silent in {m.client for m in state.members}
    state = one_round(state, state.at + 1, silent={silent})
    assert silent not in {m.client for m in state.members}
    assert silent in join(state, silent, 1).pending


def test_an_epoch_ends_two_rounds_after_its_time():
    """What was sent before the end is applied before it."""
    config = replace(SETTINGS, epoch_s=10, total_steps=100)
    state = training(config=config)
    ends = []
    for _ in range(4):
        state = one_round(state, state.at + 20, config)
        ends.append(state.phase)
    assert ends[:3] == [Phase.TRAIN, Phase.TRAIN, Phase.COOLDOWN]
    state = tick(state, config, state.at + 5)
    assert (state.phase, state.epoch) == (Phase.WAITING, 1)


def test_pause_and_resume():
    """A pause stops after the round, with a cool-down; members keep their places."""
    state = one_round(pause(training()), 1)
    assert state.phase is Phase.COOLDOWN
    state = tick(state, SETTINGS, state.at + 5)
    assert state.phase is Phase.PAUSED
    assert tick(state, SETTINGS, 10**6) == state
    state = resume(state, 100)
    assert (state.phase, len(state.members)) == (Phase.WAITING, 4)


def test_only_elected_witnesses_count_and_only_once():
    """Reports of others, of strangers and second reports change nothing."""
    state = training()
    others = [m.client for m in state.members if m.client not in elected(state, SETTINGS)]
    assert witness(state, SETTINGS, others[0], {0: "x"}) == state
    first = elected(state, SETTINGS)[0]
    told = witness(state, SETTINGS, first, {0: "x", 99: "y"})
    assert told.proofs == {first: {0: "x"}}
    assert witness(told, SETTINGS, first, {0: "z"}) == told


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 2), (3, 2), (4, 2), (6, 4), (32, 21)])
def test_quorum(count, needed):
    """1 of 1, 2 of 2 or 3, else two thirds."""
    assert quorum(count) == needed


def test_consensus():
    """A payload counts if a quorum saw it with one digest."""
    assert consensus([], 1) == {}
    assert consensus([{1: "a", 2: "b"}, {1: "a", 2: "c"}, {1: "a", 3: "d"}], 2) == {1: "a"}


def test_fewer_witnesses_than_a_quorum_agree_on_nothing():
    """One report of three elected witnesses is no quorum: the epoch ends, and nobody is dropped."""
    config = replace(SETTINGS, witnesses=3, min_clients=3, init_min_clients=3)
    state = training(config=config)
    told = {m.client: "a" for m in state.members}
    alone = witness(state, config, elected(state, config)[0], told)
    late = tick(tick(alone, config, alone.at + config.round_s), config, 10**6)
    assert (late.phase, late.agreed, late.step) == (Phase.COOLDOWN, {}, 1)
    assert late.members == state.members
    two = witness(alone, config, elected(state, config)[1], told)
    late = tick(tick(two, config, two.at + config.round_s), config, 10**6)
    assert (late.phase, late.agreed) == (Phase.TRAIN, told)


def test_an_epoch_of_so_many_rounds():
    """Counted from where its training began, whatever the time."""
    config = replace(SETTINGS, epoch_rounds=3, epoch_s=1e9)
    state = training(config=config)
    for phase in (Phase.TRAIN, Phase.TRAIN, Phase.COOLDOWN):
        state = one_round(state, state.at + 1000, config)
        assert state.phase is phase


@pytest.mark.parametrize(
    ("change", "message"),
    [({"round_s": 0}, "round_s must be positive"), ({"witnesses": 3}, "in that order"), ({"total_steps": 0}, "at least 1")],
)  # fmt: skip
def test_settings_with_which_no_round_can_end(change, message):
    """They are refused."""
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


NEXT = {
    Phase.WAITING: {Phase.WARMUP, Phase.PAUSED},
    Phase.WARMUP: {Phase.TRAIN, Phase.WAITING},
    Phase.TRAIN: {Phase.WITNESS},
    Phase.WITNESS: {Phase.TRAIN, Phase.COOLDOWN},
    Phase.COOLDOWN: {Phase.WAITING, Phase.PAUSED, Phase.FINISHED},
}
"""Which phases may follow each other by time alone."""


REACHED = Counter()
"""How often the random lives came to each phase, and to payloads that were agreed on."""


class Lives(RuleBasedStateMachine):
    """Joins, deaths, reports and delays in any order: the rules hold at every moment."""

    def __init__(self):
        super().__init__()
        self.config = replace(SETTINGS, total_steps=2, epoch_s=60)
        self.state, self.now, self.steps, self.epochs = State(), 0.0, 0, 0

    def advance(self, seconds):
        self.now += seconds
        before = self.state
        self.state = tick(before, self.config, self.now)
        REACHED[self.state.phase] += 1
        REACHED["agreed"] += bool(self.state.agreed)
        if before.phase is not self.state.phase:
            assert self.state.phase in NEXT[before.phase], (before.phase, self.state.phase)
            if self.state.phase is Phase.TRAIN:
                assert len(self.state.members) >= self.config.min_clients
        assert self.state.step - before.step in (0, 1)

    @initialize(count=st.integers(3, 8))
    def many_come(self, count):
        for client in range(count):
            self.state = join(self.state, client, client % 3)

    @rule()
    def all_fetch(self):
        for member in self.state.members:
            self.state = has_parameters(self.state, member.client)

    @rule(silent=st.sets(st.integers(0, 7), max_size=2))
    def witnesses_report(self, silent):
        heard = {m.client: "a" for m in self.state.members if m.client not in silent}
        for client in elected(self.state, self.config):
            if client not in silent:
                self.state = witness(self.state, self.config, client, heard)

    @precondition(lambda self: self.state.phase in (Phase.WAITING, Phase.COOLDOWN))
    @rule()
    def an_epoch_begins(self):
        self.advance(self.config.cooldown_s)
        self.advance(0.0)
        self.all_fetch()
        self.advance(0.0)

    @precondition(lambda self: self.state.phase is Phase.TRAIN)
    @rule(silent=st.sets(st.integers(0, 7), max_size=1))
    def a_round_passes(self, silent):
        self.witnesses_report(silent)
        self.advance(self.config.round_s)
        self.advance(self.config.witness_s)

    @rule(client=st.integers(0, 7), tier=st.integers(0, 2))
    def comes(self, client, tier):
        self.state = join(self.state, client, tier)

    @rule(client=st.integers(0, 7))
    def dies(self, client):
        self.state = leave(self.state, client)

    @rule(client=st.integers(0, 7))
    def fetches(self, client):
        self.state = has_parameters(self.state, client)

    @rule(client=st.integers(0, 7), heard=st.dictionaries(st.integers(0, 9), st.sampled_from("ab")))
    def reports(self, client, heard):
        self.state = witness(self.state, self.config, client, heard)

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 30.0, 100.0]))
    def waits(self, seconds):
        self.advance(seconds)

    @rule(really=st.integers(0, 9))
    def pauses(self, really):
        if really == 0:
            self.state = pause(self.state)

    @precondition(lambda self: self.state.phase is Phase.PAUSED)
    @rule()
    def goes_on(self):
        self.state = resume(self.state, self.now)

    @invariant()
    def rules_hold(self):
        state = self.state
        numbers = [m.client for m in state.members]
        assert numbers == sorted(set(numbers))
        assert not set(numbers) & set(state.pending)
        assert state.ready <= set(numbers)
        assert set(state.agreed) <= set(numbers) | set(range(8))
        assert state.step <= self.config.total_steps
        assert state.step >= self.steps
        assert state.epoch >= self.epochs
        self.steps, self.epochs = state.step, state.epoch
        assert (state.phase is Phase.FINISHED) <= (state.step == self.config.total_steps)


def test_random_lives():
    """The rules hold in all of them, and they come to every phase: else they were no test of it."""
    REACHED.clear()
    drawn_alike = hypothesis_settings(
        max_examples=150, stateful_step_count=60, deadline=None, derandomize=True
    )
    run_state_machine_as_test(Lives, settings=drawn_alike)
    assert REACHED["agreed"] > 20
    assert all(REACHED[phase] > 2 for phase in Phase), REACHED
