"""The table of specs/swarm.md §0.6: agreement of small and large clients, as its author measured it.

The table is one run: parameters drawn in the order of the source's set-up script, from a generator
seeded with 0, and the first sequence of the file for every client and round. Over 18 other draws the
overlap's sign has a standard deviation of 0.005, the head's of 0.012: only the same draw can be held
against it to 0.01.
"""

import numpy as np
import pytest
import torch
from test_swarm_train import Context

from assay.core.config import to_plain
from assay.core.settings import Settings
from assay.engines import memory
from assay.engines.swarm import agreement
from assay.engines.swarm.config import SwarmConfig
from assay.engines.swarm.matformer import layout
from assay.engines.swarm.train import begin, store

DATA = Settings.from_environment().data_dir
ROUNDS = 15
CONFIG = SwarmConfig(
    model="nanogpt-34m", tiers=(0, 1, 1, 1), steps=ROUNDS, schedule_steps=40, batch=4, seq_len=64,
    corpus="tinyshakespeare", mode="legacy", batches="fixed", lr=4e-4, final_lr=4e-5, warmup_steps=10,
    store=("payloads", "gradients"),
)  # fmt: skip


def as_the_source_draws(shape):
    """The full model: embedding, layer by layer, head; N(0, 0.02), gains 1."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.ones(layout(shape, 0).size)
    views = layout(shape, 0).views(theta)
    of_layer = ("q", "k", "v", "o", "gate", "up", "down")
    layers = [f"layers.{i}.{name}" for i in range(shape.layers) for name in of_layer]
    for name in ("embedding", *layers, "head"):
        views[name].copy_(torch.randn(views[name].shape, generator=generator) * 0.02)
    return theta


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Payloads and gradients of fifteen rounds."""
    memory.keep()
    context = Context()
    context.data_dir = DATA
    session = begin(CONFIG, context)
    session.full = as_the_source_draws(CONFIG.shape)
    session.order = np.arange(len(session.order))
    for step in range(1, ROUNDS + 1):
        session.round()
        store(session, context, step)
    folder = tmp_path_factory.mktemp("stored")
    files = {}
    for name, content in context.saved.items():
        files[name] = folder / name
        files[name].write_bytes(content)
    return files


def first(files, rounds):
    """The files of the first rounds."""
    return {name: path for name, path in files.items() if int(name.split("-")[1]) <= rounds}


@pytest.mark.skipif(DATA is None, reason="tinyshakespeare is not in the repository: set ASSAY_DATA")
@pytest.mark.long
def test_the_table(stored):
    """Within 0.01 on signs and 0.03 on cosines; no tolerance of ours."""
    run = {"config": to_plain(CONFIG)}
    found = agreement.encoded(stored, run) | agreement.decoded(stored, run)
    found |= agreement.overlap(stored, run)
    four = first(stored, 4)
    found |= agreement.raw(four, run) | agreement.first_layer(four, run)
    table = {
        "encoded": (0.9971, 0.650),
        "decoded": (0.6873, 0.607),
        "overlap": (0.7571, 0.622),
        "mlp": (0.5302, 0.108),
        "raw": (0.780, 0.819),
        "first_layer": (0.578, 0.267),
    }
    for name, (sign, cosine) in table.items():
        assert found[f"agree/{name}_sign"] == pytest.approx(sign, abs=0.01), name
        assert found[f"agree/{name}_cosine"] == pytest.approx(cosine, abs=0.03), name
    for name, sign in (("embedding", 0.999), ("head", 0.608), ("attention", 0.530)):
        assert found[f"agree/{name}_sign"] == pytest.approx(sign, abs=0.01), name
