"""Measures of the concepts that a run stored, as versioned analyses of a study.

`[analyses.NAME] function = "assay.engines.concepts.reanalysis:…"`, with `artifacts =
["concepts.safetensors"]`. A definition that turns out to be wrong is mended as a new version, on the
concepts as they are, without training again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from assay.core.errors import DataError
from assay.engines.concepts.analysis import measure

STORED = "concepts.safetensors"
"""Of a run: its concepts of held-out texts, [texts, slots, numbers], under "concepts"."""
RANKS = ("rank_mean", "rank_text", "rank_input", "entropy_rank_mean", "entropy_rank_text", "entropy_rank_input")  # fmt: skip
SHAPES = ("input_dependence", "isotropy", "participation_ratio", "dominance_mean", "dominance_text", "cosine_mean")  # fmt: skip


def ranks(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """Effective ranks by both definitions: of the mean over texts, of single texts, of what texts change."""
    return _named(artifacts, RANKS)


def shapes(artifacts: Mapping[str, Path], run: Mapping[str, Any]) -> dict[str, float]:
    """How much of the concepts depends on the text, and how they are spread."""
    return _named(artifacts, SHAPES)


def _named(artifacts: Mapping[str, Path], names: tuple[str, ...]) -> dict[str, float]:
    found = measure(_stored(artifacts))
    return {f"concepts/{name}": found[name] for name in names}


def _stored(artifacts: Mapping[str, Path]) -> Tensor:
    try:
        return load_file(artifacts[STORED])["concepts"]
    except (KeyError, OSError, SafetensorError) as error:
        raise DataError(
            f"A run must have stored its concepts as {STORED}: {error}. Runs of architecture bert, and runs that "
            "diverged, have none."
        ) from error
