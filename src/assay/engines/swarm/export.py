"""Models of all tiers on disk: slices, a manifest with digests, and how a client loads one.

A folder holds `tier0/`, `tier1/`, …, each with `config.json` and `model.safetensors`, and
`matformer_manifest.json` with relative paths and sha256 (specs/swarm.md §1).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from assay.core.errors import CheckpointError
from assay.engines.swarm.config import Shape
from assay.engines.swarm.matformer import layout, slice_tier, tier_of
from assay.engines.swarm.model import PLAIN, Scaling

MANIFEST = "matformer_manifest.json"
SCHEMA_VERSION = 1
MOST_BYTES = 2**34
MOST_SIZE = 2**24
Strategy = Literal["auto", "universal", "sliced"]


@dataclass(frozen=True)
class Loaded:
    """A model as a client of a tier holds it.

    Attributes:
        theta: Its parameters, a flat row of its tier.
        shape: Sizes of the full model.
        tier: The tier of `theta`.
        was_sliced: Whether it was read as a slice, or cut here from the full model.
        scaling: The factors of its feed-forward blocks.
    """

    theta: Tensor
    shape: Shape
    tier: int
    was_sliced: bool
    scaling: Scaling = PLAIN


def schema_hash(shape: Shape) -> str:
    """What all tiers of one model share: architecture, sizes at full width, names of the tensors.

    The width of a tier is not part of it, so that clients of all tiers have one hash.
    """
    names = sorted(name for group in layout(shape, 0).groups for name in group.names)
    told = {"architecture": "assay-matformer", "config": asdict(shape), "tensors": names}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def write_tiers(
    theta: Tensor,
    shape: Shape,
    folder: Path,
    tiers: Sequence[int],
    scalings: Mapping[int, Scaling] | None = None,
) -> Path:
    """Write slices of a full model; returns the manifest.

    Args:
        theta: Parameters of tier 0.
        shape: Their sizes.
        folder: New, or empty.
        tiers: Which to write.
        scalings: The factors of each tier's feed-forward blocks, if it has any.

    Raises:
        CheckpointError: The folder holds a manifest already.
    """
    if (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder} holds exported tiers already; give an empty folder.")
    entries = []
    for tier in sorted(set(tiers)):
        place = folder / f"tier{tier}"
        place.mkdir(parents=True, exist_ok=True)
        model = to_bytes(slice_tier(theta, shape, tier), shape, tier)
        scaling = (scalings or {}).get(tier, PLAIN)
        files = {"config.json": _config(shape, tier, scaling), "model.safetensors": model}
        for name, content in files.items():
            (place / name).write_bytes(content)
        entries.append(
            {
                "tier": tier,
                "intermediate_size": shape.width(tier),
                "files": {
                    f"tier{tier}/{name}": hashlib.sha256(content).hexdigest()
                    for name, content in files.items()
                },
            }
        )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "matformer_base_intermediate_size": shape.ffn,
        "schema_hash": schema_hash(shape),
        "common_files": [],
        "tiers": entries,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return folder / MANIFEST


def to_bytes(theta: Tensor, shape: Shape, tier: int) -> bytes:
    """Parameters as safetensors, one tensor a name."""
    views = layout(shape, tier).views(theta)
    return save_tensors({name: view.contiguous().clone() for name, view in views.items()})


def from_bytes(content: bytes, shape: Shape, tier: int) -> Tensor:
    """Parameters out of safetensors.

    Raises:
        CheckpointError: Damaged, or not the tensors of this tier.
    """
    plan = layout(shape, tier)
    try:
        tensors = load_tensors(content)
        # Before memory is taken for sizes that only a configuration names.
        names = {name for group in plan.groups for name in group.names}
        if names != set(tensors):
            raise ValueError(f"tensors {sorted(names ^ set(tensors))[:3]} are missing or too many")
        if sum(each.numel() for each in tensors.values()) != plan.size:
            raise ValueError(f"they must be {plan.size:,} numbers")
        theta = torch.empty(plan.size)
        for name, view in plan.views(theta).items():
            if tensors[name].shape != view.shape:
                raise ValueError(f"{name} is {tuple(tensors[name].shape)}, not {tuple(view.shape)}")
            view.copy_(tensors[name])
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"A model file must hold the tensors of tier {tier}: {error}."
        ) from error
    return theta


def read_tier(folder: Path, tier: int, strategy: Strategy = "auto") -> Loaded:
    """Load the model of a tier.

    Args:
        folder: Of `write_tiers`.
        tier: What the client is to hold.
        strategy: "sliced": its own slice, or an error; "universal": the full model, cut here; "auto":
            the slice if it is there, else the full model.

    Raises:
        CheckpointError: A file is missing, altered, or lies outside of the folder; or a slice would
            be sliced again.
    """
    manifest = _manifest(folder)
    by_tier = {entry["tier"]: entry for entry in manifest["tiers"]}
    own = tier in by_tier
    if strategy == "sliced" and not own:
        raise CheckpointError(
            f"Tier {tier} must be in {folder} for strategy 'sliced'; it holds "
            f"{', '.join(map(str, sorted(by_tier)))}. Export it, or load 'auto'."
        )
    source = tier if own and strategy != "universal" else 0
    if source not in by_tier:
        raise CheckpointError(
            f"{folder} holds neither tier {tier} nor the full model. Export tier 0."
        )
    theta, shape, found, scaling = _read(folder, by_tier[source])
    if found != source:
        raise CheckpointError(
            f"{folder}: tier {source} must hold its own width; it holds that of tier {found}: slicing a "
            "slice would give neurons of no tier. Export the tiers again."
        )
    if schema_hash(shape) != manifest["schema_hash"]:
        raise CheckpointError(
            f"{folder}: the model does not have the schema that the manifest names."
        )
    if source == tier:
        return Loaded(theta, shape, tier, tier > 0, scaling)
    return Loaded(slice_tier(theta, shape, tier), shape, tier, was_sliced=False)


def _config(shape: Shape, tier: int, scaling: Scaling) -> bytes:
    told = {
        "architecture": "assay-matformer",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.width(tier),
        "vocab_size": shape.vocab,
        "matformer_tier": tier,
        "matformer_base_intermediate_size": shape.ffn,
        "matformer_tier_gates": shape.tier_gates,
        "matformer_suffix_logits": shape.suffix_logits,
        "matformer_scaling": asdict(scaling),
    }
    return (json.dumps(told, indent=1) + "\n").encode()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {found['schema_version']}")
        for entry in found["tiers"]:
            entry["tier"], entry["files"] = int(entry["tier"]), dict(entry["files"])
        found["schema_hash"] = str(found["schema_hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} must be the manifest of exported tiers; it is not: {error}. `assay swarm "
            "export-tiers` writes one."
        ) from error
    return dict(found)


def _read(folder: Path, entry: Mapping[str, Any]) -> tuple[Tensor, Shape, int, Scaling]:
    """Parameters, sizes, tier and factors of one entry, every file compared with its digest."""
    contents: dict[str, bytes] = {}
    for name, sha in entry["files"].items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise CheckpointError(
                f"{folder}: a manifest names files inside its folder; got {name!r}."
            )
        try:
            if (folder / name).stat().st_size > MOST_BYTES:
                raise OSError(f"more than {MOST_BYTES:,} bytes")
            contents[pure.name] = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder}/{name} cannot be read: {error}.") from error
        if hashlib.sha256(contents[pure.name]).hexdigest() != sha:
            raise CheckpointError(
                f"{folder}/{name} is not the file that the manifest names: altered."
            )
    try:
        told = json.loads(contents["config.json"])
        shape = Shape(
            hidden=int(told["hidden_size"]),
            layers=int(told["num_hidden_layers"]),
            heads=int(told["num_attention_heads"]),
            ffn=int(told["matformer_base_intermediate_size"]),
            vocab=int(told["vocab_size"]),
            tier_gates=bool(told.get("matformer_tier_gates", False)),
            suffix_logits=bool(told.get("matformer_suffix_logits", False)),
        )
        sizes = (shape.hidden, shape.layers, shape.heads, shape.ffn, shape.vocab)
        if not all(0 < size <= MOST_SIZE for size in sizes):
            raise ValueError(f"sizes must be from 1 to {MOST_SIZE:,}; got {sizes}")
        scaling = msgspec.convert(told.get("matformer_scaling", {}), Scaling)
        tier = tier_of(shape, int(told["intermediate_size"]))
    except (KeyError, ValueError, TypeError, OverflowError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{folder}: a tier's config.json does not fit: {error}.") from error
    theta = from_bytes(contents.get("model.safetensors", b""), shape, tier)
    return theta, shape, tier, scaling
