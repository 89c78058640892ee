"""Weights and training states as safetensors bytes; nothing is ever unpickled.

All metadata is one JSON text under one key: the header of a safetensors file keeps no order
between keys, and equal content must have equal bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from
from safetensors.torch import save as tensors_to
from torch import Tensor

from assay.core.config import build, canonical, to_plain
from assay.core.errors import CheckpointError, ConfigError
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.model import Parameters

FORMAT = "assay-addition-1"
"""Version of both file kinds, in the metadata."""
KEY = "assay"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Weights of one seed with what they are.

    Attributes:
        config: Configuration of the run.
        parameters: A stack of one seed.
        about: Step, seeds, validation result, as saved.
    """

    config: AdditionConfig
    parameters: Parameters
    about: Mapping[str, Any]


def dump(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Tensors and metadata as bytes."""
    whole = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    return tensors_to(whole, metadata={KEY: canonical({"format": FORMAT, **about})})


def parse(content: bytes, *, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `dump`.

    Raises:
        CheckpointError: Not a safetensors file, or not one of ours.
    """
    try:
        tensors = tensors_from(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{where}: a checkpoint must be a safetensors file; this one cannot be read as such "
            f"({error}). Give the best.safetensors or last.safetensors of a run, or a released .pt."
        ) from error
    about = header.get("__metadata__", {}).get(KEY)
    if about is None:
        raise CheckpointError(
            f"{where}: the file has no '{KEY}' metadata, so its configuration is unknown. It was "
            "not written by this engine: only its own checkpoints and released .pt files are read."
        )
    meta: dict[str, Any] = json.loads(about)
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{where}: the format must be {FORMAT!r}; got {meta.get('format')!r}. Read it with the "
            "version of Assay that wrote it."
        )
    return tensors, meta


def dump_model(
    config: AdditionConfig, parameters: Parameters, index: int, about: Mapping[str, Any]
) -> bytes:
    """Weights and frozen buffers of one seed of a stack, by name, with its run's configuration."""
    tensors = {slot.name: view for slot, view in parameters.seed(index).items()}
    return dump(tensors, {"kind": "model", "config": to_plain(config), **about})


def load_model(path: Path) -> Model:
    """Read weights: ours, or a released `.pt` file.

    Raises:
        CheckpointError: The file is missing, is not a checkpoint, or does not fit its config.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: the checkpoint cannot be read ({error.strerror}). Runs write "
            "best.safetensors and last.safetensors; check the path."
        ) from error
    if content[:2] == b"PK":
        return _released(path)
    tensors, about = parse(content, where=str(path))
    if about.get("kind") != "model":
        raise CheckpointError(
            f"{path}: weights are needed; this is a {about.get('kind')!r} file. Give "
            "best.safetensors or last.safetensors of the same run."
        )
    return assemble(about.pop("config"), tensors, about, where=str(path))


def assemble(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    *,
    where: str,
) -> Model:
    """Check a configuration and its tensors against each other.

    Raises:
        CheckpointError: Unknown settings, missing or surplus tensors, or wrong shapes.
    """
    try:
        made = build(AdditionConfig, config, where=f"{where}, config")
    except ConfigError as error:
        raise CheckpointError(
            f"{error} The checkpoint may come from another version of the engine."
        ) from error
    parameters = Parameters.zeros(made, 1)
    slots = parameters.seed(0)
    expected = {slot.name for slot in slots}
    missing, surplus = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing or surplus:
        raise CheckpointError(
            f"{where}: tensors must be those of its config; missing: {', '.join(missing) or 'none'};"
            f" unknown: {', '.join(surplus) or 'none'}. Ranks, norm and tie_qkv decide the names: "
            "the config and the weights are from different models."
        )
    for slot, place in slots.items():
        tensor = tensors[slot.name]
        if tuple(tensor.shape) != slot.shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{where}: {slot.name} must be floating point of shape {list(slot.shape)} for this "
                f"config; got {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}. The "
                "config and the weights are from different models."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{where}: {slot.name} has numbers that are NaN or infinite, so the model answers "
                "nothing. The run diverged, or the file is damaged: take an earlier checkpoint."
            )
        place.copy_(tensor)
    return Model(config=made, parameters=parameters, about=about)


def _released(path: Path) -> Model:
    """A `.pt` file of the public repositories (a plain module's state, no model axis)."""
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        state, config = dict(raw["model_state"]), dict(raw["model_config"])
    except Exception as error:  # torch raises many kinds for a broken or unsafe archive
        raise CheckpointError(
            f"{path}: a .pt file must hold only tensors and plain values under model_state and "
            f"model_config; reading it safely failed ({type(error).__name__}). It is not a "
            "released checkpoint of the public trainers, or it is damaged."
        ) from error
    _check_released(path, state, config)
    state.pop("lm_head.weight", None)
    for name, tensor in state.items():  # nn.Linear keeps [out, in]
        if name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")):
            state[name] = tensor.t() if tensor.ndim == 2 else tensor
    names = ("d_model", "d_ff", "pos_rank", "qkv_rank", "attn_out_rank", "ffn_rank", "tie_qkv")
    ours = {name: config[name] for name in names if name in config}
    ours["norm"] = "rmsnorm" if config.get("use_rmsnorm", False) else "layernorm"
    about = {"step": raw.get("step"), "released": path.name}
    return assemble(ours, state, about, where=str(path))


def _check_released(path: Path, state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse what the public trainers do not write, or what is another model."""
    odd = sorted(str(name) for name, value in state.items() if not isinstance(value, Tensor))
    if odd or "token_emb.weight" not in state:
        raise CheckpointError(
            f"{path}: model_state must hold tensors, token_emb.weight among them; "
            + (f"no tensor: {', '.join(odd)}" if odd else "it is missing")
            + ". It is not a released checkpoint of the public trainers, or it is damaged."
        )
    token = state["token_emb.weight"]
    if config.get("num_models", 1) != 1 or token.ndim != 2:
        raise CheckpointError(
            f"{path}: a .pt file must hold one model; this one has num_models = "
            f"{config.get('num_models', 1)} and token_emb.weight of shape {list(token.shape)}. "
            "Give the file of one seed, without the leading model axis."
        )
    head = state.get("lm_head.weight")
    if head is not None and not torch.equal(head, token):
        raise CheckpointError(
            f"{path}: lm_head.weight must equal token_emb.weight; it does not. Only tied heads are "
            "supported."
        )
    needed = {"n_layer": 1, "n_head": 1, "vocab_size": 14}
    got = {key: config.get(key, value) for key, value in needed.items()}
    if got != needed:
        raise CheckpointError(
            f"{path}: one layer, one head and 14 tokens are supported; got {got}."
        )
