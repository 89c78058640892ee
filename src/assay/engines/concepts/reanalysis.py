"""Measures of the concepts and of the model that a run stored, as versioned analyses of a study.

`[analyses.NAME] function = "assay.engines.concepts.reanalysis:…"`, with `artifacts =
["concepts.safetensors"]`, or `["model.zip"]` for `health`, and both for `attention`. A definition that turns
out to be wrong is mended as a new version, on what is stored, without training again.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForMaskedLM

import assay.engines.concepts.models  # noqa: F401  (known to the Auto classes)
from assay.core.errors import DataError
from assay.engines.concepts.analysis import collect, measure
from assay.engines.concepts.encoder import ConceptPreTrainedModel
from assay.engines.concepts.health import slots, weights
from assay.engines.concepts.modes import quiet

MODEL = "model.zip"
"""Of a run: the stored model with its tokenizer."""
STORED = "concepts.safetensors"
"""Of a run: held-out texts, [texts, tokens], under "ids" and "mask", and their [texts, slots, numbers], under
"concepts"."""
TEXTS = 8
"""Stored texts that are read at once."""
RANKS = ("rank_mean", "rank_text", "rank_input", "entropy_rank_mean", "entropy_rank_text", "entropy_rank_input")  # fmt: skip
SHAPES = ("input_dependence", "isotropy_but_one", "participation_ratio", "dominance_mean", "dominance_text", "cosine_mean")  # fmt: skip


def ranks(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """Effective ranks by both definitions: of the mean over texts, of single texts, of what texts change."""
    return _named(artifacts, RANKS)


def shapes(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """How much of the concepts depends on the text, and how they are spread."""
    return _named(artifacts, SHAPES)


def attention(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """How the slots of the last layer read the stored texts.

    Raises:
        DataError: The run's model cannot be loaded, or its texts were not stored.
    """
    ids, mask = _stored(artifacts, "ids", "mask")
    batches = [
        {"input_ids": some.long(), "attention_mask": seen}
        for some, seen in zip(ids.split(TEXTS), mask.split(TEXTS), strict=True)
    ]
    collected = collect(_model(artifacts).encoder, batches, attentions="last")
    found = measure(collected.concepts_TCH, collected.attention)
    return {f"concepts/{n}": value for n, value in found.items() if n.startswith("attention_")}


def health(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """How many findings the stored weights, and the slots as they begin, give rise to.

    Raises:
        DataError: The run's model cannot be loaded.
    """
    model = _model(artifacts)
    of_slots = slots(model) if isinstance(model, ConceptPreTrainedModel) else []
    return {
        "health/weight_findings": float(len(weights(model))),
        "health/slot_findings": float(len(of_slots)),
    }


def _model(artifacts: Mapping[str, Path]) -> Any:
    with TemporaryDirectory(prefix="assay-") as name:
        folder = Path(name)
        try:
            with ZipFile(artifacts[MODEL]) as archive:
                archive.extractall(folder)
            with quiet():
                return AutoModelForMaskedLM.from_pretrained(folder)
        except (KeyError, OSError, ValueError, BadZipFile, SafetensorError) as error:
            raise DataError(
                f"A run must have stored its model as {MODEL}: {error}. Name it in `artifacts`, or run the study again."
            ) from error


def _named(artifacts: Mapping[str, Path], names: tuple[str, ...]) -> dict[str, float]:
    (concepts,) = _stored(artifacts, "concepts")
    found = measure(concepts)
    return {f"concepts/{name}": found[name] for name in names}


def _stored(artifacts: Mapping[str, Path], *names: str) -> list[Tensor]:
    try:
        found = load_file(artifacts[STORED])
        return [found[name] for name in names]
    except (KeyError, OSError, SafetensorError) as error:
        raise DataError(
            f"A run must have stored {', '.join(names)} as {STORED}: {error}. Runs of architecture bert, and runs that "
            "diverged, have none; older runs have no texts."
        ) from error
