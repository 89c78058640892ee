"""A pretrained checkpoint with a new last layer for a labelled task, and whether it is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from assay.core.errors import ConfigError
from assay.engines.concepts.config import Head
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.corpus import HUB
from assay.engines.concepts.health import not_finite
from assay.engines.concepts.models import ConceptForSequenceClassification
from assay.engines.concepts.modes import quiet
from assay.engines.concepts.tasks import Task


def located(checkpoint: str | Path) -> str:
    """What the library calls the place of a checkpoint.

    Args:
        checkpoint: A folder, or "hub:NAME"; so that a mistyped folder is not looked for on the hub.

    Raises:
        ConfigError: There is no such folder.
    """
    name = str(checkpoint)
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    if not Path(name).is_dir():
        raise ConfigError(
            f"A checkpoint must be a folder with config.json and model.safetensors, or hub:NAME; there is no folder "
            f"{name!r}. Correct it, or write {HUB}{name} for the hub."
        )
    return name


def classifier(checkpoint: str | Path, task: Task, head: str | None = None) -> PreTrainedModel:
    """A pretrained model with a new last layer for a task.

    Args:
        checkpoint: Folder, or "hub:NAME": of a concept model or any other, such as BERT.
        task: What it is for.
        head: Of a concept model; None for that of its settings. Other models have one kind only.

    Raises:
        ConfigError: It cannot be loaded, lacks pretrained weights, or the head does not fit.
    """
    place = located(checkpoint)
    try:
        config = AutoConfig.from_pretrained(place)
    except Exception as error:
        raise ConfigError(
            f"The checkpoint {place!r} cannot be loaded: {type(error).__name__}: {_brief(error)}. Give a folder with "
            "config.json and model.safetensors, or a name of the hub."
        ) from error
    config.num_labels, config.return_dict = task.classes, True
    kind: Any = AutoModelForSequenceClassification
    if isinstance(config, ConceptConfig):
        config.head = _checked_head(head or config.head, task)
        kind = ConceptForSequenceClassification
    elif head is not None:
        raise ConfigError(
            f"Heads are of concept models; {place!r} is a {config.model_type}, which has one kind. Leave out "
            f"the head; got {head!r}."
        )
    try:
        with quiet():
            model, loaded = kind.from_pretrained(
                str(place), config=config, output_loading_info=True
            )
    except Exception as error:
        raise ConfigError(
            f"The checkpoint {place!r} cannot be loaded for task '{task.name}': {type(error).__name__}: "
            f"{_brief(error)}. Give a pretrained model of texts, not one that was trained for another task."
        ) from error
    _check_pretrained(model, loaded["missing_keys"], place)
    return model


def _brief(error: Exception) -> str:
    """What the library says, without the names of all kinds of models that it knows."""
    said, _, _ = str(error).partition("Model type should be one of")
    return " ".join(said.split()).removesuffix(".")


def _checked_head(head: str, task: Task) -> Head:
    known: tuple[Head, ...] = get_args(Head)
    if head not in known:
        raise ConfigError(f"A head must be one of {', '.join(known)}; got {head!r}.")
    if head == "pair" and not task.is_pair:
        raise ConfigError(
            f"The head 'pair' reads two texts one by one; task '{task.name}' has one. Take another head, such as "
            "weighted."
        )
    return known[known.index(head)]


def _check_pretrained(model: PreTrainedModel, missing: Sequence[str], place: str) -> None:
    """Only what is new may lack weights: a body drawn at random would be measured as a pretrained one."""
    bodies = (f"{model.base_model_prefix}.", "decoder.")
    # BERT's pooler belongs to its own pretraining by sentence pairs, and others leave it out.
    lost = [name for name in missing if name.startswith(bodies) and ".pooler." not in name]
    if lost:
        raise ConfigError(
            f"The checkpoint {place!r} must hold the weights of a pretrained body; {len(lost)} are missing, "
            f"such as {sorted(lost)[0]}. Give the checkpoint of a pretraining; the head 'decoder' needs its "
            "decoder too."
        )
    if broken := not_finite(model):
        raise ConfigError(
            f"The checkpoint {place!r} must hold weights that are finite numbers; {len(broken)} of its matrices and "
            f"vectors have others, such as {broken[0]}: its training diverged. Train it with a lower learning rate, or "
            "give one that was stored before."
        )
