"""A swarm: clients, a coordinator, and the network between them.

In a round every member computes a gradient and sends bytes; witnesses report what reached them in
time; what a quorum saw is agreed on, and every member applies exactly that, two rounds later by
default. So replicas stay equal under loss, delay and death.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from assay.core.errors import DataError
from assay.engines.swarm import coordinator
from assay.engines.swarm.client import Client, Order, Trained, beta
from assay.engines.swarm.config import PATIENCE_S, SwarmConfig
from assay.engines.swarm.coordinator import Phase, Settings, State
from assay.engines.swarm.crew import Crew
from assay.engines.swarm.data import Text, assignment
from assay.engines.swarm.distro import RULES
from assay.engines.swarm.exchange import read
from assay.engines.swarm.matformer import layout, prefix, slice_tier
from assay.engines.swarm.network import Network
from assay.engines.swarm.payload import PayloadError, digest

FOREVER_S = 1e12
MOST_TRIES = 20


@dataclass
class Session:
    """All clients of a run and what has not been applied yet.

    Attributes:
        config: Of the run.
        crew: Where the clients are.
        text: The corpus.
        order: Training sequences in the order of their use.
        network: Between the clients.
        state: The coordinator's.
        now: Simulated time, in seconds.
        waiting: Round → agreed payloads by client, until they are applied.
        full: The full model as of the last cool-down, for joiners that no peer can serve.
        doomed: Member → round in which it dies.
        sent: Payloads of the last round.
        applied: Round → payloads of the updates that were applied in the last round.
        sent_bytes: Of all payloads so far, each counted once.
        payloads: How many.
        agreed: How many of them were agreed on, to be applied.
        taught_bytes: Of all that teachers sent.
        done: Client → its rounds, bytes sent and received, and deaths.
        losses: Client → its last training loss, in nats.
    """

    config: SwarmConfig
    crew: Crew
    text: Text
    order: np.ndarray
    network: Network
    full: Tensor
    state: State = field(default_factory=State)
    now: float = 0.0
    waiting: dict[int, dict[int, bytes]] = field(default_factory=dict)
    doomed: dict[int, int] = field(default_factory=dict)
    sent: dict[int, bytes] = field(default_factory=dict)
    applied: dict[int, dict[int, bytes]] = field(default_factory=dict)
    sent_bytes: int = 0
    payloads: int = 0
    agreed: int = 0
    taught_bytes: int = 0
    done: dict[int, Counter[str]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.state.phase is Phase.FINISHED

    @property
    def exchanges(self) -> bool:
        """Whether the clients send anything."""
        return self.config.mode != "local-adamw"

    @property
    def settings(self) -> Settings:
        """The coordinator's: an epoch lasts as many rounds as the configuration says."""
        rounds = self.config.epoch_rounds
        slowest = max(self.network.compute_s(i) for i in range(len(self.config.tiers)))
        few = min(3, len(self.config.tiers))
        return Settings(
            epoch_s=FOREVER_S,
            epoch_rounds=rounds,
            round_s=max(30.0, 3 * slowest),
            witness_s=0.001,
            witnesses=few,
            min_clients=few,
            init_min_clients=few,
            total_steps=self.config.steps,
            stop_s=self.config.stop_s or FOREVER_S,
        )

    def round(self) -> dict[str, float]:
        """One round of all members; its metrics."""
        if self.state.phase is not Phase.TRAIN:
            self._assemble()
        step, self.applied = self.state.step + 1, {}
        rule = RULES[self.config.mode] if self.exchanges else None
        if rule and rule.delay and step - rule.delay in self.waiting:
            self._apply(step - rule.delay, step)
        trained = self._train(step)
        packed = self._readable(step, trained)
        metrics = self._metrics(step, trained)
        self.sent = packed
        self.sent_bytes += sum(map(len, packed.values()))
        self.payloads += len(packed)
        self._exchange(step, sorted(packed if self.exchanges else trained), packed)
        if rule and not rule.delay and step in self.waiting:
            self._apply(step, step)
        self._bury(step)
        if self.state.phase is Phase.COOLDOWN:
            self._cool_down()
        return metrics

    def _train(self, step: int) -> dict[int, Trained]:
        """A gradient of every member: first of the widest, if others depend on what it did."""
        config = self.config
        self._notice_dead()
        members = sorted(
            (member.client for member in self.state.members), key=lambda n: (self._tier(n), n)
        )
        parts = assignment(config, self.order, step, members)
        orders = {n: Order(step, self.text.sequences(parts[n])) for n in members}
        trained: dict[int, Trained] = {}
        teaches = beta(config, step) > 0
        if members and (teaches or config.support == "leader"):
            trained = self.crew.train({members[0]: orders.pop(members[0])})
            for first, did in trained.items():
                lead = (first, did.payload) if config.support == "leader" else None
                for number, order in orders.items():
                    given = did.given if teaches and self._tier(number) > 0 else None
                    orders[number] = Order(step, order.text_BT, given, lead)
                    size = given.bytes if given is not None else 0
                    self.network.moved_bytes += size
                    self.taught_bytes += size
        trained |= self.crew.train(orders)
        if teaches:
            taught = any(order.teacher is not None for order in orders.values())
            students = sum(self._tier(number) > 0 for number in members)
            self.network.events["untaught"] += 0 if taught else students
        self._notice_dead()
        return trained

    def _readable(self, step: int, trained: Mapping[int, Trained]) -> dict[int, bytes]:
        """The payloads of a round that can be read; who sends what cannot be is not heard.

        Raises:
            DataError: None can be read: the run has diverged.
        """
        if not self.exchanges:
            return {}
        packed: dict[int, bytes] = {}
        wrong = ""
        for number, did in sorted(trained.items()):
            try:
                read(self.config, number, step, did.payload)
                packed[number] = did.payload
            except PayloadError as error:
                self.network.events["refused"] += 1
                wrong = f"client {number}: {error}"
        if trained and not packed:
            raise DataError(
                f"A round needs a payload that can be read; in round {step} none can ({wrong}). If values "
                "are not finite, the run has diverged: lower lr."
            )
        return packed

    def _exchange(self, step: int, members: Sequence[int], packed: Mapping[int, bytes]) -> None:
        """Send, witness, agree; the round's agreed payloads wait to be applied."""
        settings, state = self.settings, self.state
        ready = {n: self.now + self.network.compute_s(n) for n in members}
        end = max(ready.values(), default=self.now)
        alive = [n for n in members if self.doomed.get(n) != step]
        for number in coordinator.elected(state, settings):
            if number not in alive:
                continue
            deadline = ready[number] + PATIENCE_S
            heard, last = {}, ready[number]
            for sender in members:
                data = packed.get(sender, b"")
                at = (
                    self._reach(data, sender, number, step, ready[sender])
                    if data
                    else ready[sender]
                )
                if at <= deadline:
                    heard[sender] = digest(data).hex()
                    last = max(last, at)
                else:
                    self.network.events["late"] += 1
                    last = deadline
            state = coordinator.witness(state, settings, number, heard)
            end = max(end, last)
        witnesses = set(coordinator.elected(state, settings))
        for number in alive:
            if number not in witnesses:
                for sender, data in packed.items():
                    self._reach(data, sender, number, step, ready[sender])
        heard_by_some = bool(state.proofs)
        self.now = max(end, state.at)
        if coordinator.tick(state, settings, self.now).phase is Phase.TRAIN:
            # A witness died: the coordinator waits for it until the round's time is over.
            self.now = max(self.now, state.at + settings.round_s)
        state = coordinator.tick(state, settings, self.now)
        self.now = state.at + settings.witness_s
        self.state = coordinator.tick(state, settings, self.now)
        assert self.state.step == step, "a round must end"
        if packed:
            warm = {n for n in self.state.agreed if not self._is_cold(n, step, state)}
            self.waiting[step] = {n: packed[n] for n in self.state.agreed if n in warm}
            self.agreed += len(self.waiting[step])
        dropped = set(members) - {member.client for member in self.state.members}
        # Without a witness all are withdrawn, and live on; else who was dropped is gone.
        for number in dropped if heard_by_some else ():
            self._lose(number)

    def _reach(self, data: bytes, sender: int, receiver: int, step: int, at: float) -> float:
        """When a payload is at a receiver; altered copies are refused on the way."""
        if sender == receiver:
            return at
        arrival = self.network.send(data, sender, receiver, step, at)
        self._count(receiver, received_bytes=len(data))
        if arrival.altered:
            altered = self.network.altered(data, sender, receiver, step)
            try:
                read(self.config, sender, step, altered)
            except PayloadError:
                return arrival.at
            raise AssertionError("an altered payload was not refused")
        return arrival.at

    def _assemble(self) -> None:
        """Waiting and warm-up: everybody who is not a member joins, and fetches the parameters."""
        settings, tries = self.settings, 0
        while self.state.phase in (Phase.WAITING, Phase.WARMUP):
            tries += 1
            if tries > MOST_TRIES:
                few = f"{len(self.crew.living())} of {settings.init_min_clients} clients that it needs"
                raise DataError(f"An epoch cannot begin: in {MOST_TRIES} tries {few} were there.")
            known = {member.client for member in self.state.members}
            for number in self.crew.at_hand(settings.init_min_clients):
                if number not in known:
                    self.state = coordinator.join(self.state, number, self._tier(number))
            self.now += settings.warmup_s / 2
            self.state = coordinator.tick(self.state, settings, self.now)
            if self.state.phase is Phase.WARMUP:
                self._admit([member.client for member in self.state.members])
                for number in self.crew.living():
                    self.state = coordinator.has_parameters(self.state, number)
        members = [member.client for member in self.state.members]
        rounds = self.config.epoch_rounds or self.config.steps
        self.doomed = self.network.kills(self.state.epoch, self.state.step + 1, rounds, members)

    def _admit(self, members: Sequence[int]) -> None:
        """Joiners' replicas: fetched from the first peer that is wide enough, or from the full model."""
        config, living = self.config, self.crew.living()
        given: dict[int, Tensor | int] = {}
        for number in members:
            if number in living:
                continue
            stored = config.stored(number)
            peers = [n for n in living if config.stored(n) <= stored]
            given[number] = peers[0] if peers else self._patched(stored)
            if self.state.epoch:
                self.network.moved_bytes += 4 * layout(config.shape, stored).size
                self.network.events["rejoins"] += 1
        self.crew.admit(given, self.state.step)

    def full_model(self) -> Tensor:
        """The parameters of tier 0 as the living clients have them; a flat row."""
        return self._patched(0)

    def _patched(self, tier: int) -> Tensor:
        """The model of the last cool-down, with what narrower peers have learned since."""
        shape = self.config.shape
        full = self.full.clone()
        for number in reversed(self.crew.living()):
            stored, theta = self.config.stored(number), self.crew.theta(number)
            if theta is None:
                continue
            wide, narrow = layout(shape, 0), layout(shape, stored)
            for theirs, ours in zip(wide.groups, narrow.groups, strict=True):
                prefix(theirs, theirs.view(full), shape.width(stored)).copy_(ours.view(theta))
        return slice_tier(full, shape, tier)

    def _bury(self, step: int) -> None:
        """Those who die in this round, after they have sent."""
        for number, at in list(self.doomed.items()):
            if at == step and number in self.crew.living():
                self.network.events["kills"] += 1
                self.state = coordinator.leave(self.state, number)
                self._lose(number)

    def _notice_dead(self) -> None:
        """Members whose process is gone."""
        living = self.crew.living()
        for member in self.state.members:
            if member.client not in living:
                self.network.events["kills"] += 1
                self.state = coordinator.leave(self.state, member.client)
                self._lose(member.client)

    def _lose(self, number: int) -> None:
        """A client is gone."""
        self.crew.lose(number)
        self._count(number, deaths=1)

    def _cool_down(self) -> None:
        """The end of an epoch: what was sent is applied, and the full model is kept."""
        for sent_at in sorted(self.waiting):
            self._apply(sent_at, sent_at + RULES[self.config.mode].delay)
        self.full = self.full_model()
        settings = self.settings
        self.now = self.state.at + settings.cooldown_s
        self.state = coordinator.tick(self.state, settings, self.now)

    def _apply(self, sent_at: int, step: int) -> None:
        """Every living client applies the agreed payloads of a round; those of a tier as one update."""
        packed = self.waiting.pop(sent_at)
        self.applied[sent_at] = packed
        self.crew.apply(packed, sent_at, self.config.lr_at(step))

    def equal_replicas(self) -> bool:
        """Whether all clients of a tier hold the same parameters bit for bit; not if nobody lives."""
        found: dict[int, set[str]] = {}
        for number, digest_ in self.crew.digests().items():
            found.setdefault(self.config.stored(number), set()).add(digest_)
        return bool(found) and all(len(each) == 1 for each in found.values())

    def held_out(self, *, final: bool) -> dict[int, float]:
        """Tier → loss on held-out text, in nats, of every tier of the run: test text if final.

        That of the first living client of the tier; if none lives, that of a slice of the full model
        as of the last cool-down.
        """
        count = self.config.eval_sequences
        text = self.text.test(count) if final else self.text.validation(count)
        found: dict[int, float] = {}
        for number in self.crew.living():
            tier = self._tier(number)
            if tier not in found:
                loss = self.crew.held_out_loss(number, text, self.state.step)
                found |= {} if loss is None else {tier: loss}
        for number, tier in enumerate(self.config.tiers):
            if tier not in found:
                client = Client(self.config, number, self._patched(self.config.stored(number)))
                found[tier] = client.held_out_loss(text, self.state.step)
        return dict(sorted(found.items()))

    def applied_share(self) -> float:
        """Payloads that were agreed on, of all that were sent; 0 if none were."""
        return self.agreed / self.payloads if self.payloads else 0.0

    def _is_cold(self, number: int, step: int, state: State) -> bool:
        """Whether a member came in too late for what it sends to be applied."""
        since = next(member.since for member in state.members if member.client == number)
        return since > 0 and step - since <= self.config.cold_rounds

    def _count(self, number: int, **what: int) -> None:
        self.done.setdefault(number, Counter()).update(what)

    def _tier(self, number: int) -> int:
        return self.config.tiers[number]

    def _metrics(self, step: int, trained: Mapping[int, Trained]) -> dict[str, float]:
        found = {"train/lr": self.config.lr_at(step)}
        losses: dict[int, list[float]] = {}
        for number, did in sorted(trained.items()):
            losses.setdefault(self._tier(number), []).append(did.loss)
            self.losses[number] = did.loss
            self._count(number, rounds=1, sent_bytes=len(did.payload))
        for tier, each in sorted(losses.items()):
            found[f"train/loss_nats_tier{tier}"] = sum(each) / len(each)
        return found
