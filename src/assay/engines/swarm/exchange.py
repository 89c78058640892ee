"""What a run's configuration says about payloads: whose they are, what they hold, what they amount to."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from assay.engines.swarm.codec import Grid
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.distro import RULES, Peer, Sent, applied, combined, grids
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


def direction(
    config: SwarmConfig, stored: int, packed: Mapping[int, bytes], step: int
) -> Tensor | None:
    """Where a client that stores a tier goes, given a round's agreed payloads; None if there are none.

    Args:
        config: Of the run.
        stored: The tier that the client stores.
        packed: Client → payload.
        step: Round in which they were sent.
    """
    peers = [read(config, client, step, data) for client, data in sorted(packed.items())]
    if not peers:
        return None
    rule = RULES[config.mode]
    return applied(combined(config.shape, stored, peers, rule, config.cut), config.apply)
