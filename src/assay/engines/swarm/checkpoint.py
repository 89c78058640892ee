"""All that the next round of a swarm depends on, as bytes: arrays in a zip, never pickled."""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping

import msgspec
import numpy as np
import torch
from torch import Tensor

from assay.core.errors import CheckpointError
from assay.engines.swarm.client import Client
from assay.engines.swarm.coordinator import State
from assay.engines.swarm.distro import Sent
from assay.engines.swarm.matformer import layout
from assay.engines.swarm.session import Session


def arrays_to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as an .npz file; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def dump(session: Session) -> bytes:
    """A session's state."""
    arrays: dict[str, np.ndarray] = {"full": session.full.numpy()}
    for number, client in session.clients.items():
        arrays |= {f"client.{number}.{name}": each for name, each in _client(client).items()}
    for number, delta in session.kept.items():
        arrays[f"kept.{number}"] = delta.numpy()
    for step, packed in session.waiting.items():
        for number, data in packed.items():
            arrays[f"waiting.{step}.{number}"] = np.frombuffer(data, np.uint8)
    facts = {
        "state": msgspec.to_builtins(session.state, str_keys=True),
        "now": session.now,
        "doomed": {str(n): step for n, step in session.doomed.items()},
        "rounds": sorted(session.waiting),
        "events": dict(session.network.events),
        "moved_bytes": session.network.moved_bytes,
        "sent_bytes": session.sent_bytes,
        "payloads": session.payloads,
    }
    arrays["facts"] = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
    return arrays_to_bytes(arrays)


def load(session: Session, content: bytes) -> None:
    """Put a checkpoint into a fresh session of the same configuration.

    Raises:
        CheckpointError: It is none of it.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        facts = json.loads(found["facts"].tobytes())
        _fill(session, found, facts)
    except (KeyError, ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"A checkpoint of a swarm must hold the state of its {len(session.config.tiers)} clients; "
            f"this one does not: {error}. Remove it to begin again."
        ) from error


def _client(client: Client) -> dict[str, np.ndarray]:
    found = {"theta": client.theta.numpy()}
    if client.distro is not None:
        found["delta"] = client.distro.delta.numpy()
        for at, part in enumerate(client.distro.own or ()):
            found[f"own.{at}.idx"], found[f"own.{at}.val"] = part.idx.numpy(), part.val.numpy()
    if client.adamw is not None and client.adamw.state:
        state = client.adamw.state[client.theta]
        for name in ("step", "exp_avg", "exp_avg_sq"):
            found[f"adamw.{name}"] = state[name].numpy()
    return found


def _fill(session: Session, found: Mapping[str, np.ndarray], facts: Mapping[str, object]) -> None:
    config = session.config
    session.full.copy_(_tensor(found, "full"))
    numbers = {int(name.split(".")[1]) for name in found if name.startswith("client.")}
    session.clients = {n: c for n, c in session.clients.items() if n in numbers}
    for number in sorted(numbers - set(session.clients)):
        tier = config.tiers[number]
        session.clients[number] = Client(config, tier, torch.zeros(layout(config.shape, tier).size))
    for number, client in session.clients.items():
        at = f"client.{number}."
        mine = {name.removeprefix(at): each for name, each in found.items() if name.startswith(at)}
        _restore(client, mine)
    session.kept = {
        int(name.split(".")[1]): _tensor(found, name) for name in found if name.startswith("kept.")
    }
    session.waiting = {step: {} for step in msgspec.convert(facts["rounds"], list[int])}
    for name, array in found.items():
        if name.startswith("waiting."):
            _, step, number_ = name.split(".")
            session.waiting[int(step)][int(number_)] = array.tobytes()
    session.state = msgspec.convert(facts["state"], State, strict=False)
    session.now = msgspec.convert(facts["now"], float)
    session.doomed = msgspec.convert(facts["doomed"], dict[int, int], strict=False)
    session.network.events = Counter(msgspec.convert(facts["events"], dict[str, int]))
    session.network.moved_bytes = msgspec.convert(facts["moved_bytes"], int)
    session.sent_bytes = msgspec.convert(facts["sent_bytes"], int)
    session.payloads = msgspec.convert(facts["payloads"], int)


def _restore(client: Client, mine: Mapping[str, np.ndarray]) -> None:
    client.theta.copy_(_tensor(mine, "theta"))
    if client.distro is not None:
        client.distro.delta.copy_(_tensor(mine, "delta"))
        if "own.0.idx" in mine:
            client.distro.own = [
                Sent(_tensor(mine, f"own.{at}.idx"), _tensor(mine, f"own.{at}.val"))
                for at in range(len(client.plan.groups))
            ]
    if client.adamw is not None and "adamw.step" in mine:
        client.adamw.state[client.theta] = {
            name: _tensor(mine, f"adamw.{name}") for name in ("step", "exp_avg", "exp_avg_sq")
        }


def _tensor(arrays: Mapping[str, np.ndarray], name: str) -> Tensor:
    return torch.from_numpy(np.array(arrays[name]))
