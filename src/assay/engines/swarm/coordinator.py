"""The coordinator: who trains when, as pure functions of a state, an event and a time.

States and transitions are those of specs/swarm.md §3. Nothing here reads a clock, draws a number or
sends a message: whoever drives it says what happened and when, in seconds of any clock.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum


class Phase(Enum):
    """What the swarm does."""

    WAITING = "waiting for members"
    WARMUP = "warm-up"
    TRAIN = "training"
    WITNESS = "witnessing"
    COOLDOWN = "cool-down"
    FINISHED = "finished"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times in seconds, and how many clients are needed.

    Attributes:
        warmup_s: Longest time for joiners to fetch the parameters.
        round_s: Longest time of a training round.
        witness_s: Time that is always waited for witnesses.
        cooldown_s: Time to write the checkpoint at the end of an epoch.
        epoch_s: After this time an epoch ends, two rounds later, so that what was sent is applied.
        epoch_rounds: After so many rounds an epoch ends at once: what was sent is applied then; 0 is never.
        waiting_s: Further time for more clients once enough are there.
        min_clients: Fewer end an epoch.
        init_min_clients: Fewer do not begin one.
        witnesses: Elected members of a round that report what they received.
        total_steps: Rounds of the run.
        stop_s: Time at which the run ends, if it has not ended before.
    """

    warmup_s: float = 5.0
    round_s: float = 30.0
    witness_s: float = 5.0
    cooldown_s: float = 5.0
    epoch_s: float = 60.0
    waiting_s: float = 0.0
    min_clients: int = 1
    init_min_clients: int = 1
    witnesses: int = 1
    total_steps: int = 100
    epoch_rounds: int = 0
    stop_s: float = math.inf

    def __post_init__(self) -> None:
        """Refuse settings with which no round can end."""
        for name in ("warmup_s", "round_s", "witness_s", "cooldown_s", "epoch_s", "stop_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if not 1 <= self.witnesses <= self.min_clients <= self.init_min_clients:
            raise ValueError(
                "witnesses, min_clients and init_min_clients must be 1 or more and in that order; got "
                f"{self.witnesses}, {self.min_clients}, {self.init_min_clients}"
            )
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be at least 1; got {self.total_steps}")


@dataclass(frozen=True, slots=True)
class Member:
    """A client that trains in this epoch: its number, its tier, and the round it came in."""

    client: int
    tier: int
    since: int


@dataclass(frozen=True, slots=True)
class State:
    """All that the coordinator knows.

    Attributes:
        phase: What the swarm does.
        at: When the phase began.
        epoch: Counted from 0.
        step: Rounds that are done.
        epoch_at: When the epoch's training began.
        epoch_step: Rounds that were done then.
        last_step: Round after which the epoch ends; None while that is open.
        members: Who trains in this epoch, by number.
        pending: Who waits for the next epoch: number → tier.
        ready: Members that have the parameters.
        proofs: Witness → what it received in this round: client → digest of its payload.
        missed: Member → rounds in a row in which no agreed payload of it was there.
        agreed: Payloads of the last round that a quorum of witnesses saw: client → digest.
        paused: Whether a pause was asked for.
    """

    phase: Phase = Phase.WAITING
    at: float = 0.0
    epoch: int = 0
    step: int = 0
    epoch_at: float = 0.0
    epoch_step: int = 0
    last_step: int | None = None
    members: tuple[Member, ...] = ()
    pending: Mapping[int, int] = field(default_factory=dict)
    ready: frozenset[int] = frozenset()
    proofs: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    missed: Mapping[int, int] = field(default_factory=dict)
    agreed: Mapping[int, str] = field(default_factory=dict)
    paused: bool = False


def quorum(count: int) -> int:
    """How many of so many witnesses must agree: 1 of 1, 2 of 2 or 3, else two thirds."""
    return count if count < 3 else max(2, 2 * count // 3)


def elected(state: State, settings: Settings) -> tuple[int, ...]:
    """The witnesses of a round: drawn from the members by a hash that all can compute."""
    ranked = sorted(
        state.members,
        key=lambda m: hashlib.sha256(
            f"witness {state.epoch} {state.step} {m.client}".encode()
        ).digest(),
    )
    return tuple(member.client for member in ranked[: settings.witnesses])


def join(state: State, client: int, tier: int) -> State:
    """A client asks to take part: it is admitted with the next epoch."""
    if any(member.client == client for member in state.members):
        return state
    return replace(state, pending={**state.pending, client: tier})


def leave(state: State, client: int) -> State:
    """A client is gone, or is taken to be."""
    return replace(
        state,
        members=tuple(member for member in state.members if member.client != client),
        pending={c: t for c, t in state.pending.items() if c != client},
        ready=state.ready - {client},
        missed={c: n for c, n in state.missed.items() if c != client},
    )


def has_parameters(state: State, client: int) -> State:
    """A member has fetched the parameters of this epoch."""
    known = any(member.client == client for member in state.members)
    return replace(state, ready=state.ready | {client}) if known else state


def witness(state: State, settings: Settings, client: int, received: Mapping[int, str]) -> State:
    """A witness reports which payloads of the round it received.

    Reports of others, of clients that are no members, and a second report are not counted.
    """
    counts = state.phase in (Phase.TRAIN, Phase.WITNESS) and client in elected(state, settings)
    if not counts or client in state.proofs:
        return state
    members = {member.client for member in state.members}
    seen = {c: digest for c, digest in received.items() if c in members}
    return replace(state, proofs={**state.proofs, client: seen})


def pause(state: State) -> State:
    """Stop after this round, with a checkpoint."""
    return replace(state, paused=True)


def resume(state: State, now: float) -> State:
    """Go on after a pause."""
    if state.phase is not Phase.PAUSED:
        return replace(state, paused=False)
    return replace(state, phase=Phase.WAITING, at=now, paused=False)


def tick(state: State, settings: Settings, now: float) -> State:
    """What the state is at a time, if nothing else happened since the last event."""
    step = {
        Phase.WAITING: _waiting,
        Phase.WARMUP: _warmup,
        Phase.TRAIN: _train,
        Phase.WITNESS: _witness,
        Phase.COOLDOWN: _cooldown,
    }.get(state.phase)
    # The steps add to the beginning of a phase: (at + x) - at may be less than x in floats.
    return state if step is None else step(state, settings, now)


def _waiting(state: State, settings: Settings, now: float) -> State:
    if state.paused:
        return replace(state, phase=Phase.PAUSED, at=now)
    known = {m.client: m for m in state.members}
    everyone = {**{c: m.tier for c, m in known.items()}, **state.pending}
    if len(everyone) < settings.init_min_clients or now < state.at + settings.waiting_s:
        return state
    members = tuple(
        known.get(client, Member(client, tier, state.step))
        for client, tier in sorted(everyone.items())
    )
    return replace(
        state, phase=Phase.WARMUP, at=now, members=members, pending={}, ready=frozenset(), missed={}
    )


def _warmup(state: State, settings: Settings, now: float) -> State:
    if len(state.members) < settings.min_clients:
        return replace(state, phase=Phase.WAITING, at=now)
    # All of them, not some: a client without the parameters cannot train.
    everyone = state.ready >= {member.client for member in state.members}
    if not everyone and now < state.at + settings.warmup_s:
        return state
    members = tuple(member for member in state.members if member.client in state.ready)
    if len(members) < settings.min_clients:
        return replace(state, phase=Phase.WAITING, at=now, members=members)
    return replace(
        state,
        phase=Phase.TRAIN,
        at=now,
        members=members,
        epoch_at=now,
        epoch_step=state.step,
        last_step=None,
        proofs={},
        agreed={},
    )


def _train(state: State, settings: Settings, now: float) -> State:
    enough = len(state.proofs) >= min(settings.witnesses, len(state.members)) > 0
    if not enough and now < state.at + settings.round_s:
        return state
    return replace(state, phase=Phase.WITNESS, at=now)


def _witness(state: State, settings: Settings, now: float) -> State:
    if now < state.at + settings.witness_s:
        return state
    needed = quorum(min(settings.witnesses, len(state.members)))
    agreed = consensus(state.proofs.values(), needed)
    done = state.step + 1
    missed = {
        m.client: 0 if m.client in agreed else state.missed.get(m.client, 0) + 1
        for m in state.members
    }
    # A member that no quorum heard for two rounds is dropped; where there was no quorum, nobody is.
    enough = len(state.proofs) >= max(1, needed)
    dropped = {c for c, n in missed.items() if n >= 2} if enough else set[int]()
    members = tuple(member for member in state.members if member.client not in dropped)
    last = state.last_step
    if last is None and now >= state.epoch_at + settings.epoch_s:
        last = done + 2
    ends = (
        not enough
        or len(members) < settings.min_clients
        or done >= settings.total_steps
        or now >= settings.stop_s
        or (settings.epoch_rounds and done - state.epoch_step >= settings.epoch_rounds)
        or state.paused
        or (last is not None and done >= last)
    )
    staying = members if state.proofs else ()
    after = replace(
        state,
        step=done,
        members=staying,
        ready=state.ready & {member.client for member in staying},
        missed={c: n for c, n in missed.items() if c not in dropped},
        agreed=agreed,
        proofs={},
        last_step=last,
        at=now,
    )
    return replace(after, phase=Phase.COOLDOWN if ends else Phase.TRAIN)


def _cooldown(state: State, settings: Settings, now: float) -> State:
    if now < state.at + settings.cooldown_s:
        return state
    if state.step >= settings.total_steps or now >= settings.stop_s:
        phase = Phase.FINISHED
    else:
        phase = Phase.PAUSED if state.paused else Phase.WAITING
    return replace(state, phase=phase, at=now, epoch=state.epoch + 1, agreed={})


def consensus(proofs: Iterable[Mapping[int, str]], needed: int) -> dict[int, str]:
    """The payloads that so many witnesses received with the same digest."""
    votes: dict[tuple[int, str], int] = {}
    for report in proofs:
        for client, digest in report.items():
            votes[client, digest] = votes.get((client, digest), 0) + 1
    agreed = {client: digest for (client, digest), count in votes.items() if count >= needed}
    return dict(sorted(agreed.items()))
