"""Models of all tiers on disk."""

import json

import pytest
import torch

from assay.core.errors import CheckpointError
from assay.engines.swarm.config import Shape
from assay.engines.swarm.export import MANIFEST, read_tier, schema_hash, write_tiers
from assay.engines.swarm.matformer import initial, slice_tier

SHAPE = Shape(hidden=16, layers=1, heads=2, ffn=32, vocab=20)


@pytest.fixture
def folder(tmp_path):
    """Tiers 0 and 1 of a model."""
    write_tiers(initial(SHAPE, torch.Generator().manual_seed(0)), SHAPE, tmp_path, [0, 1])
    return tmp_path


@pytest.mark.parametrize(
    ("tier", "strategy", "was_sliced"),
    [(0, "auto", False), (1, "auto", True), (1, "sliced", True), (1, "universal", False), (2, "auto", False), (2, "universal", False)],
)  # fmt: skip
def test_strategies(folder, tier, strategy, was_sliced):
    """Whatever is read, a tier has the same parameters."""
    found = read_tier(folder, tier, strategy)
    want = slice_tier(initial(SHAPE, torch.Generator().manual_seed(0)), SHAPE, tier)
    assert torch.equal(found.theta, want)
    assert (found.shape, found.tier, found.was_sliced) == (SHAPE, tier, was_sliced)


def test_a_missing_slice(folder):
    """Strategy "sliced" takes nothing else."""
    with pytest.raises(CheckpointError, match="'sliced'"):
        read_tier(folder, 2, "sliced")


def test_slicing_a_slice_is_refused(folder):
    """A folder whose tier 0 is really a slice: the full model is not there."""
    manifest = json.loads((folder / MANIFEST).read_text())
    full, half = manifest["tiers"]
    full["files"] = half["files"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="slicing a slice"):
        read_tier(folder, 2, "universal")


def test_altered_files(folder):
    """Every file is compared with its digest; paths stay inside; the manifest must be one."""
    model = folder / "tier1" / "model.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="altered"):
        read_tier(folder, 1)
    model.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tier(folder, 1)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["tiers"][0]["files"] = {"../../etc/passwd": "0"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="inside its folder"):
        read_tier(folder, 0)
    (folder / MANIFEST).write_text("[]")
    with pytest.raises(CheckpointError, match="must be the manifest"):
        read_tier(folder, 0)


def test_schema_hash():
    """One hash for all tiers; another for another model."""
    assert schema_hash(SHAPE) == schema_hash(Shape(hidden=16, layers=1, heads=2, ffn=32, vocab=20))
    assert schema_hash(SHAPE) != schema_hash(Shape(hidden=16, layers=1, heads=2, ffn=64, vocab=20))


def test_nothing_is_overwritten(folder):
    """A folder that holds tiers is refused."""
    with pytest.raises(CheckpointError, match="empty folder"):
        write_tiers(initial(SHAPE, torch.Generator().manual_seed(1)), SHAPE, folder, [0])
