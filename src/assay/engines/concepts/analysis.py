"""Measures of a trained encoder: what its concepts hold, how much of it is the text's, what slots read.

Everything is computed in float64. The measure to read first is `input_dependence`: a model whose slots
are the same in every text can have full rank, right angles and even variances, and know nothing.
"""

# Suffixes, this file: T = texts, C = concepts (slots), H = hidden numbers, K = min(C, H).

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from assay.engines.concepts.attention_use import AttentionUse
from assay.engines.concepts.encoder import ConceptModel, ConceptOutput
from assay.engines.concepts.modes import evaluating
from assay.engines.concepts.regularisers import UNIFORMITY_TAU, cosines

ROUNDING = 1e-12
"""Variance below this share of the mean square is float32 rounding (about 1e-7, squared), and counts as 0."""
COLLAPSED = 1e-4
"""A number with a smaller deviation holds nothing."""
AT_ONCE = 16
"""Texts computed together in float64."""

Layers = Literal["none", "last", "all"]


@dataclass(frozen=True, slots=True)
class Collected:
    """What a model makes of texts.

    Attributes:
        concepts_TCH: On the CPU, in the model's own precision.
        attention: How slots read, of each layer that was asked for, in the order of layers.
    """

    concepts_TCH: Tensor
    attention: tuple[AttentionUse, ...] = ()


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that is measured, also what is not one number.

    Attributes:
        measures: Name → value, as `measure` gives them.
        mean_K: Singular values of the mean over texts, the largest first.
        text_TK: Those of each text.
        input_TK: Those of each text less the mean over texts.
        dependence_C: Input dependence of each slot.
        attention: How slots read, of each layer that was collected.
    """

    measures: Mapping[str, float]
    mean_K: Tensor
    text_TK: Tensor
    input_TK: Tensor
    dependence_C: Tensor
    attention: tuple[AttentionUse, ...]


@torch.no_grad()
def collect(
    model: ConceptModel, batches: Iterable[Mapping[str, Tensor]], *, attentions: Layers = "last"
) -> Collected:
    """Run an encoder over texts, without dropout, and keep the concepts and sums of what slots read.

    Args:
        model: The encoder (`.encoder` of the other classes). It is left in the mode it was in.
        batches: With `input_ids` and, where texts are filled up, `attention_mask`; lengths may differ.
        attentions: Of which layers to collect how slots read. Other than "none" it computes every
            layer's attention a second time and needs [B, heads, C, N] numbers for each layer and batch.

    Raises:
        ValueError: There is no batch, or a text without a token.
        ConfigError: Texts do not fit the model.
    """
    concepts: list[Tensor] = []
    uses: list[AttentionUse] = []
    with evaluating(model):
        for batch in batches:
            mask = batch.get("attention_mask")
            if mask is not None and not mask.bool().any(1).all():
                raise ValueError("every text must have a token; one is masked from end to end")
            out: ConceptOutput = model(
                batch["input_ids"].to(model.device),
                None if mask is None else mask.to(model.device),
                output_attentions=attentions != "none",
            )
            assert out.last_hidden_state is not None
            concepts.append(out.last_hidden_state.cpu())
            reads = (out.attentions or ())[-1 if attentions == "last" else 0 :]
            uses = uses or [AttentionUse() for _ in reads]
            for use, weights in zip(uses, reads, strict=True):
                use.add(weights, mask)
    if not concepts:
        raise ValueError("there must be a batch of texts; got none")
    return Collected(torch.cat(concepts), tuple(uses))


def measure(concepts_TCH: Tensor, attention: Sequence[AttentionUse] = ()) -> dict[str, float]:
    """All measures of concepts and, where given, of what slots read; means over its layers.

    Args:
        concepts_TCH: Of two texts or more, any precision.
        attention: Of layers, as `collect` gives them.

    Returns:
        Name → value; `assay.engines.concepts.analysis_metrics.METRICS` says what each is. Of one slot
        alone there are no cosines and no uniformity; without attention none of its measures.

    Raises:
        ValueError: Fewer than two texts, another shape, or numbers that are not finite.
    """
    return dict(analyse(concepts_TCH, attention).measures)


def analyse(concepts_TCH: Tensor, attention: Sequence[AttentionUse] = ()) -> Analysis:
    """As `measure`, with the spectra and the values of each slot.

    Raises:
        ValueError: As `measure`.
    """
    _check(concepts_TCH)
    whole, energy, dependence_C = input_dependence(concepts_TCH)
    mean_CH = _mean(concepts_TCH)
    texts, inputs = [], []
    for part in _parts(concepts_TCH):
        texts.append(torch.linalg.svdvals(part))
        changed = part - mean_CH
        noise = changed.square().sum((1, 2)) <= ROUNDING * part.square().sum((1, 2))
        inputs.append(torch.linalg.svdvals(changed.masked_fill(noise[:, None, None], 0)))
    mean_K, text_TK, input_TK = torch.linalg.svdvals(mean_CH), torch.cat(texts), torch.cat(inputs)
    measures = {"input_dependence": whole, "input_energy": energy}
    for matrix, values in (("mean", mean_K[None]), ("text", text_TK), ("input", input_TK)):
        measures |= {
            name.format(matrix): float(value.mean()) for name, value in _spectral(values).items()
        }
    measures |= _pairs(concepts_TCH) | _covariance(concepts_TCH) | _lengths(concepts_TCH)
    layers = [use.measures() for use in attention]
    for name in layers[0] if layers else ():
        measures[name] = sum(layer[name] for layer in layers) / len(layers)
    return Analysis(measures, mean_K, text_TK, input_TK, dependence_C, tuple(attention))


def input_dependence(concepts_TCH: Tensor) -> tuple[float, float, Tensor]:
    """How much of the concepts is the text's.

    With μ_c the mean of slot c over texts and μ the mean of all, the variance around μ is that within
    slots, W_c = mean_t |x_tc − μ_c|², and that between them, B_c = |μ_c − μ|². Dependence is
    ΣW / Σ(W + B), of a slot W_c / (W_c + B_c). It is 0 for slots that no text changes, and 1 where
    slots have the same mean. Moving, turning or scaling all concepts changes nothing. T texts share
    chance too: slots without a static part give about 1 − 1/T, since B_c is then about W_c / T.

    Slots that have collapsed to one vector and differ by a little noise alone score 1 as well: against
    that stands the second value, ΣW / Σ mean_t |x_tc|², for which a common vector is static too.

    Returns:
        The dependence of all slots, their share of the mean square, and the dependence of each slot [C].

    Raises:
        ValueError: As `measure`.
    """
    _check(concepts_TCH)
    mean_CH = _mean(concepts_TCH)
    within_C, energy_C = torch.zeros_like(mean_CH[:, 0]), torch.zeros_like(mean_CH[:, 0])
    for part in _parts(concepts_TCH):
        within_C += (part - mean_CH).square().sum((0, 2)) / len(concepts_TCH)
        energy_C += part.square().sum((0, 2)) / len(concepts_TCH)
    between_C = (mean_CH - mean_CH.mean(0)).square().sum(-1)
    return (
        float(_share(within_C.sum(), between_C.sum(), energy_C.sum())),
        float(_share(within_C.sum(), energy_C.sum() - within_C.sum(), energy_C.sum())),
        _share(within_C, between_C, energy_C),
    )


def _check(concepts_TCH: Tensor) -> None:
    if concepts_TCH.dim() != 3 or len(concepts_TCH) < 2 or not concepts_TCH.numel():
        raise ValueError(
            f"concepts must be [texts, slots, numbers] of two texts or more; got {tuple(concepts_TCH.shape)}"
        )
    if not concepts_TCH.isfinite().all():
        bad = int((~concepts_TCH.isfinite()).sum())
        raise ValueError(
            f"concepts must be finite; {bad} of {concepts_TCH.numel()} numbers are not"
        )


def _parts(concepts_TCH: Tensor) -> Iterator[Tensor]:
    """A few texts at a time in float64, so that no second copy of everything is held."""
    for part in concepts_TCH.split(AT_ONCE):
        yield part.double()


def _mean(concepts_TCH: Tensor) -> Tensor:
    return torch.stack([part.sum(0) for part in _parts(concepts_TCH)]).sum(0) / len(concepts_TCH)


def _pooled(concepts_TCH: Tensor) -> Tensor:
    return torch.cat([part.mean(1) for part in _parts(concepts_TCH)])


def _share(part: Tensor, rest: Tensor, energy: Tensor) -> Tensor:
    """Part of part + rest; 0 where both are no more than rounding."""
    whole = part + rest
    return torch.where(whole > ROUNDING * energy, part / whole.clamp(min=1e-300), 0.0)


def _spectral(values_TK: Tensor) -> dict[str, Tensor]:
    """Measures of singular values, the largest first; of a matrix of zeros all are 0."""
    size = values_TK.shape[-1]
    tiny = torch.finfo(torch.float64).tiny
    total, squares = values_TK.sum(-1), values_TK.square()
    energy = squares / squares.sum(-1, keepdim=True).clamp(min=tiny)
    shares = values_TK / total[:, None].clamp(min=tiny)
    rank = total / values_TK[:, 0].clamp(min=tiny)
    entropy_rank = torch.where(total > 0, (-torch.xlogy(shares, shares).sum(-1)).exp(), 0.0)
    # As many as are needed: those before which less than 95 % is reached, but for rounding.
    before = energy.cumsum(-1) - energy
    dims = ((before < 0.95 - 1e-12) & (energy > 0)).sum(-1).double()
    return {
        "rank_{}": rank,
        "rank_{}_share": rank / size,
        "entropy_rank_{}": entropy_rank,
        "entropy_rank_{}_share": entropy_rank / size,
        "dims95_{}": dims,
        "top1_share_{}": energy[:, 0],
        "top5_share_{}": energy[:, :5].sum(-1),
        "dominance_{}": shares[:, 0],
    }


def _pairs(concepts_TCH: Tensor) -> dict[str, float]:
    """Of two slots of one text; nothing where there is one slot."""
    if concepts_TCH.shape[1] < 2:
        return {}
    found: list[Tensor] = []
    for part in _parts(concepts_TCH):
        # Rounding can take a cosine a little beyond 1.
        cosine = cosines(part).clamp(-1, 1)
        near = (-UNIFORMITY_TAU * (2 - 2 * cosine)).exp()
        found.append(torch.stack([cosine.abs().mean(1), cosine.amax(1), near.mean(1)]))
    absolute_T, largest_T, near_T = torch.cat(found, dim=1)
    return {
        "cosine_mean": float(absolute_T.mean()),
        "cosine_max": float(largest_T.max()),
        "cosine_max_text": float(largest_T.mean()),
        "uniformity": float(near_T.mean()),
    }


def _covariance(concepts_TCH: Tensor) -> dict[str, float]:
    """Of the numbers of a concept, over all slots of all texts."""
    size = concepts_TCH.shape[-1]
    mean_H = _mean(concepts_TCH).mean(0)
    sums_HH = torch.zeros(size, size, dtype=torch.float64, device=concepts_TCH.device)
    for part in _parts(concepts_TCH):
        centred = part.flatten(0, 1) - mean_H
        sums_HH += centred.mT @ centred
    covariance_HH = sums_HH / (concepts_TCH.shape[0] * concepts_TCH.shape[1] - 1)
    deviation_H = covariance_HH.diagonal().sqrt()
    values_H = torch.linalg.eigvalsh(covariance_HH).clamp(min=0)
    tiny = torch.finfo(torch.float64).tiny
    ratio = values_H.sum().square() / values_H.square().sum().clamp(min=tiny)
    largest = values_H[-1].clamp(min=tiny)
    return {
        "isotropy": float(values_H[0] / largest),
        "isotropy_but_one": float(values_H[min(1, size - 1)] / largest),
        "participation_ratio": float(ratio),
        "participation_share": float(ratio) / size,
        "std_min": float(deviation_H.min()),
        "std_mean": float(deviation_H.mean()),
        "std_max": float(deviation_H.max()),
        "dims_collapsed": float((deviation_H < COLLAPSED).sum()),
    }


def _lengths(concepts_TCH: Tensor) -> dict[str, float]:
    """Of concepts, and the likeness of whole texts."""
    norms_TC = torch.cat([part.norm(dim=-1) for part in _parts(concepts_TCH)])
    unit_TH = functional.normalize(_pooled(concepts_TCH), dim=-1)
    texts = len(unit_TH)
    # Σ_{i≠j} u_i·u_j = |Σu|² − Σ|u|²: no [T, T] table.
    pairs = unit_TH.sum(0).square().sum() - unit_TH.square().sum()
    return {
        "norm_mean": float(norms_TC.mean()),
        "norm_min": float(norms_TC.min()),
        "norm_max": float(norms_TC.max()),
        "text_cosine_mean": float(pairs) / (texts * (texts - 1)),
    }
