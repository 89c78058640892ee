"""What a run's configuration says about payloads: whose they are, what they hold, what they amount to."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from assay.engines.swarm.codec import Grid
from assay.engines.swarm.combine import apply_combined, combined
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.distro import RULES, Peer, Sent, grids
from assay.engines.swarm.matformer import chosen
from assay.engines.swarm.payload import Head, pack, schema, unpack


def cuts(config: SwarmConfig, client: int) -> tuple[Grid, ...]:
    """The chunks of what a client sends."""
    return grids(config.shape, config.tiers[client], config.cut, config.helpers(client))


def neurons(config: SwarmConfig, client: int, step: int) -> Tensor | None:
    """A client's helper neurons in a round, [layers, helpers]; None if it has none."""
    count = config.helpers(client)
    if not count:
        return None
    epoch = (step - 1) // config.helper_interval
    return chosen(config.shape, config.tiers[client], count, epoch)


def head(config: SwarmConfig, client: int, step: int) -> Head:
    """How a client's payload of a round must begin."""
    told = schema(cuts(config, client))
    return Head(config.payload, config.tiers[client], step, client, told)


def write(config: SwarmConfig, client: int, step: int, sent: Sequence[Sent]) -> bytes:
    """A client's payload of a round."""
    zeros = RULES[config.mode].zeros
    return pack(head(config, client, step), sent, cuts(config, client), zeros=zeros)


def read(config: SwarmConfig, client: int, step: int, data: bytes) -> Peer:
    """What a payload says, after every check.

    Raises:
        PayloadError: It is not what that client could have sent in that round.
    """
    sent = unpack(data, head(config, client, step), cuts(config, client))
    return Peer(config.tiers[client], sent, neurons(config, client, step))


def read_all(config: SwarmConfig, packed: Mapping[int, bytes], sent_at: int) -> list[Peer]:
    """What a round's agreed payloads say, in the order in which all receivers add them.

    Args:
        config: Of the run.
        packed: Client → payload.
        sent_at: Round in which they were sent.

    Raises:
        PayloadError: One is not what its client could have sent.
    """
    return [read(config, client, sent_at, data) for client, data in sorted(packed.items())]


def update(config: SwarmConfig, packed: Mapping[int, bytes], sent_at: int) -> Tensor:
    """What a round's agreed payloads make of the full model, before the learning rate; a flat row.

    Args:
        config: Of the run.
        packed: Client → payload.
        sent_at: Round in which they were sent.
    """
    peers = read_all(config, packed, sent_at)
    made = combined(config.shape, 0, peers, RULES[config.mode], config.cut)
    return made.sign() if config.apply == "sign" else made


def apply(
    config: SwarmConfig, thetas: Sequence[Tensor], stored: int, peers: Sequence[Peer], lr: float
) -> None:
    """Step where what a round's clients sent leads to, in place.

    Args:
        config: Of the run.
        thetas: Parameters of clients that store one tier, flat rows.
        stored: That tier.
        peers: As `read_all` gives them.
        lr: Learning rate of the round in which they are applied.
    """
    if peers:
        rule = RULES[config.mode]
        apply_combined(thetas, config.shape, stored, peers, rule, config.cut, config.apply, lr)
