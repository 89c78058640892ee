"""All that the next round of a swarm depends on, as bytes: arrays in a zip, never pickled."""

import io
import json
import tokenize
import zipfile
from collections import Counter
from collections.abc import Mapping

import msgspec
import numpy as np
import torch

from assay.core.errors import CheckpointError
from assay.engines.swarm.coordinator import State
from assay.engines.swarm.session import Session

UNREADABLE = (
    KeyError, IndexError, ValueError, TypeError, OSError, EOFError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile
)  # fmt: skip
"""What numpy and our own reading raise for bytes that are no such arrays."""


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
    for number in session.crew.living():
        state = session.crew.state(number) or {}
        arrays |= {f"client.{number}.{name}": each for name, each in state.items()}
    for number, kept in session.crew.kept().items():
        arrays |= {f"kept.{number}.{name}": each for name, each in kept.items()}
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
        "agreed": session.agreed,
        "taught_bytes": session.taught_bytes,
        "done": {str(n): dict(each) for n, each in session.done.items()},
        "losses": {str(n): loss for n, loss in session.losses.items()},
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
    except UNREADABLE as error:
        raise CheckpointError(
            f"A checkpoint of a swarm must hold the state of its {len(session.config.tiers)} clients; "
            f"this one does not: {error}. Remove it to begin again."
        ) from error


def _fill(session: Session, found: Mapping[str, np.ndarray], facts: Mapping[str, object]) -> None:
    session.full.copy_(torch.from_numpy(found["full"]))
    session.crew.restore(_by_client(found, "client"))
    session.crew.kept().update(_by_client(found, "kept"))
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
    session.agreed = msgspec.convert(facts["agreed"], int)
    session.taught_bytes = msgspec.convert(facts["taught_bytes"], int)
    done = msgspec.convert(facts["done"], dict[int, dict[str, int]], strict=False)
    session.done = {number: Counter(each) for number, each in done.items()}
    session.losses = msgspec.convert(facts["losses"], dict[int, float], strict=False)


def _by_client(found: Mapping[str, np.ndarray], what: str) -> dict[int, dict[str, np.ndarray]]:
    """Client → name → array, of the arrays called WHAT.CLIENT.NAME."""
    out: dict[int, dict[str, np.ndarray]] = {}
    for key, array in found.items():
        first, _, rest = key.partition(".")
        if first == what:
            number, _, name = rest.partition(".")
            out.setdefault(int(number), {})[name] = array
    return out
