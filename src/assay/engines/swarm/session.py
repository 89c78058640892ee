"""A swarm in one process: real clients, a coordinator, and the network between them.

In a round every member computes a gradient and sends bytes; witnesses report what reached them in
time; what a quorum saw is agreed on, and every member applies exactly that, two rounds later by
default. So replicas stay equal under loss, delay and death.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from assay.core.engine import RunContext
from assay.engines.swarm import coordinator
from assay.engines.swarm.client import Client
from assay.engines.swarm.codec import Grid
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.coordinator import Phase, Settings, State
from assay.engines.swarm.data import Text, assignment, corpus
from assay.engines.swarm.distill import Targets
from assay.engines.swarm.distro import RULES, Sent, apply_combined, grids
from assay.engines.swarm.matformer import initial, layout, prefix, slice_tier
from assay.engines.swarm.network import Network
from assay.engines.swarm.payload import Head, PayloadError, digest, pack, schema, unpack

PATIENCE_S = 3.0
"""A witness reports when it has every member's payload, or so long after its own."""
FOREVER_S = 1e12


@dataclass
class Session:
    """All clients of a run and what has not been applied yet.

    Attributes:
        config: Of the run.
        clients: Number → the living replicas.
        text: The corpus.
        order: Training sequences in the order of their use.
        network: Between the clients.
        state: The coordinator's.
        now: Simulated time, in seconds.
        waiting: Round → agreed payloads by client, until they are applied.
        kept: What dead clients keep on disk: their untransmitted update.
        full: The full model as of the last cool-down, for joiners that no peer can serve.
        doomed: Member → round in which it dies.
        sent: Payloads of the last round.
        sent_bytes: Of all payloads so far, each counted once.
        payloads: How many.
    """

    config: SwarmConfig
    clients: dict[int, Client]
    text: Text
    order: np.ndarray
    network: Network
    full: Tensor
    state: State = field(default_factory=State)
    now: float = 0.0
    waiting: dict[int, dict[int, bytes]] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)
    doomed: dict[int, int] = field(default_factory=dict)
    sent: dict[int, bytes] = field(default_factory=dict)
    sent_bytes: int = 0
    payloads: int = 0

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
            epoch_s=rounds * 1.0 if rounds else FOREVER_S,
            round_s=max(30.0, 3 * slowest),
            witness_s=0.001,
            witnesses=few,
            min_clients=few,
            init_min_clients=few,
            total_steps=self.config.steps,
        )

    def round(self) -> dict[str, float]:
        """One round of all members; its metrics."""
        if self.state.phase is not Phase.TRAIN:
            self._assemble()
        step = self.state.step + 1
        rule = RULES[self.config.mode] if self.exchanges else None
        if rule and rule.delay and step - rule.delay in self.waiting:
            self._apply(step - rule.delay, step)
        members = [member.client for member in self.state.members]
        parts = assignment(self.config, self.order, step, members)
        packed: dict[int, bytes] = {}
        teacher: Targets | None = None
        for number in sorted(members, key=lambda n: (self._tier(n), n)):
            client = self.clients[number]
            given = teacher if client.tier > 0 and client.beta(step) > 0 else None
            sent = client.train(self.text.sequences(parts[number]), step, given)
            teacher = teacher or (client.given if client.tier == 0 else None)
            if given is not None:
                self.network.moved_bytes += given.bytes
            if self.exchanges:
                packed[number] = self._packed(number, sent, step)
        metrics = self._metrics(step, members)
        self.sent = packed
        self.sent_bytes += sum(map(len, packed.values()))
        self.payloads += len(packed)
        self._exchange(step, members, packed)
        if rule and not rule.delay:
            self._apply(step, step)
        self._bury(step)
        if self.state.phase is Phase.COOLDOWN:
            self._cool_down()
        return metrics

    def _exchange(self, step: int, members: Sequence[int], packed: Mapping[int, bytes]) -> None:
        """Send, witness, agree; the round's agreed payloads wait to be applied."""
        settings, state = self.settings, self.state
        ready = {n: self.now + self.network.compute_s(n) for n in members}
        end = max(ready.values())
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
            self.waiting[step] = {n: packed[n] for n in self.state.agreed}
        dropped = set(members) - {member.client for member in self.state.members}
        # Without a witness all are withdrawn, and live on; else who was dropped is gone.
        for number in dropped if heard_by_some else ():
            self._lose(number)

    def _reach(self, data: bytes, sender: int, receiver: int, step: int, at: float) -> float:
        """When a payload is at a receiver; altered copies are refused on the way."""
        if sender == receiver:
            return at
        arrival = self.network.send(data, sender, receiver, step, at)
        if arrival.altered:
            altered = self.network.altered(data, sender, receiver, step)
            try:
                unpack(altered, self._head(sender, step), self._cuts(self._tier(sender)))
            except PayloadError:
                return arrival.at
            raise AssertionError("an altered payload was not refused")
        return arrival.at

    def _assemble(self) -> None:
        """Waiting and warm-up: everybody who is not a member joins, and fetches the parameters."""
        known = {member.client for member in self.state.members}
        for number, tier in enumerate(self.config.tiers):
            if number not in known:
                self.state = coordinator.join(self.state, number, tier)
        settings = self.settings
        while self.state.phase in (Phase.WAITING, Phase.WARMUP):
            self.now += settings.warmup_s / 2
            self.state = coordinator.tick(self.state, settings, self.now)
            if self.state.phase is Phase.WARMUP:
                for member in self.state.members:
                    if member.client not in self.clients:
                        self._admit(member.client, member.tier)
                    self.state = coordinator.has_parameters(self.state, member.client)
        members = [member.client for member in self.state.members]
        rounds = self.config.epoch_rounds or self.config.steps
        self.doomed = self.network.kills(self.state.epoch, self.state.step + 1, rounds, members)

    def _admit(self, number: int, tier: int) -> None:
        """A joiner's replica: fetched from the first peer that is wide enough, checked by its hash."""
        config = self.config
        peers = [c for n, c in sorted(self.clients.items()) if c.tier <= tier]
        source = peers[0] if peers else None
        if source is None:
            theta = self._patched(tier)
        else:
            theta = slice_tier(source.theta, config.shape, tier, source=source.tier)
        client = Client(config, tier, theta)
        self.network.moved_bytes += 4 * len(theta)
        if number in self.kept and client.distro is not None:
            client.distro.delta.copy_(self.kept.pop(number))
        self.clients[number] = client
        if self.state.epoch:
            self.network.events["rejoins"] += 1

    def full_model(self) -> Tensor:
        """The parameters of tier 0 as the living clients have them; a flat row."""
        return self._patched(0)

    def _patched(self, tier: int) -> Tensor:
        """The model of the last cool-down, with what narrower peers have learned since."""
        shape = self.config.shape
        full = self.full.clone()
        for _, peer in sorted(self.clients.items(), reverse=True):
            wide, narrow = layout(shape, 0), layout(shape, peer.tier)
            for theirs, ours in zip(wide.groups, narrow.groups, strict=True):
                prefix(theirs, theirs.view(full), shape.width(peer.tier)).copy_(
                    ours.view(peer.theta)
                )
        return slice_tier(full, shape, tier)

    def _bury(self, step: int) -> None:
        """Those who die in this round, after they have sent."""
        for number, at in list(self.doomed.items()):
            if at == step and number in self.clients:
                self.network.events["kills"] += 1
                self.state = coordinator.leave(self.state, number)
                self._lose(number)

    def _lose(self, number: int) -> None:
        """A client is gone; on its disk stays what it had not sent."""
        client = self.clients.pop(number, None)
        if client is not None and client.distro is not None:
            self.kept[number] = client.distro.delta.clone()

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
        config, packed = self.config, self.waiting.pop(sent_at)
        peers = [
            (self._tier(n), unpack(data, self._head(n, sent_at), self._cuts(self._tier(n))))
            for n, data in sorted(packed.items())
        ]
        if not peers:
            return
        cut, rule, lr = (config.chunk, config.top_k), RULES[config.mode], config.lr_at(step)
        for tier in {client.tier for client in self.clients.values()}:
            thetas = [client.theta for client in self.clients.values() if client.tier == tier]
            apply_combined(thetas, config.shape, tier, peers, rule, cut, config.apply, lr)

    def equal_replicas(self) -> bool:
        """Whether all clients of a tier hold the same parameters, bit for bit."""
        digests: dict[int, set[str]] = {}
        for client in self.clients.values():
            digests.setdefault(client.tier, set()).add(client.digest())
        return all(len(each) == 1 for each in digests.values())

    def held_out(self) -> dict[int, float]:
        """Tier → loss of the full model's slice of that width on held-out text, in nats.

        Of a client that trains locally, its own: there is no common model.
        """
        text = self.text.held_out(self.config.eval_sequences)
        found: dict[int, float] = {}
        for _, client in sorted(self.clients.items()):
            if client.tier not in found:
                found[client.tier] = client.held_out_loss(text, self.state.step)
        return found

    def _tier(self, number: int) -> int:
        return self.config.tiers[number]

    def _cuts(self, tier: int) -> tuple[Grid, ...]:
        return grids(self.config.shape, tier, self.config.chunk, self.config.top_k)

    def _head(self, number: int, step: int) -> Head:
        tier = self._tier(number)
        return Head(self.config.payload, tier, step, number, schema(self._cuts(tier)))

    def _packed(self, number: int, sent: Sequence[Sent], step: int) -> bytes:
        zeros = RULES[self.config.mode].zeros
        return pack(self._head(number, step), sent, self._cuts(self._tier(number)), zeros=zeros)

    def _metrics(self, step: int, members: Iterable[int]) -> dict[str, float]:
        found = {"train/lr": self.config.lr_at(step)}
        losses: dict[int, list[float]] = {}
        for number in members:
            losses.setdefault(self._tier(number), []).append(self.clients[number].train_loss)
        for tier, each in sorted(losses.items()):
            found[f"train/loss_nats_tier{tier}"] = sum(each) / len(each)
        return found


def begin(config: SwarmConfig, context: RunContext) -> Session:
    """A run at round 0: every replica is cut from one full model."""
    text = Text(corpus(config.corpus, context.data_dir), config.seq_len)
    theta = initial(config.shape, torch.Generator().manual_seed(context.seeds["init"]))
    tiers = {tier: slice_tier(theta, config.shape, tier) for tier in sorted(set(config.tiers))}
    order = np.random.default_rng(context.seeds["data"]).permutation(text.train)
    clients = {n: Client(config, tier, tiers[tier]) for n, tier in enumerate(config.tiers)}
    network = Network(config, context.seeds["faults"])
    return Session(config, clients, text, order, network, theta)
