"""What is plainly wrong with a model: weights that broke, slots that are one, predictions that never change."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.engines.concepts.classify import ConceptForSequenceClassification
from assay.engines.concepts.encoder import ConceptModel, ConceptPreTrainedModel
from assay.engines.concepts.masked import ConceptForMaskedLM
from assay.engines.concepts.modes import evaluating

LARGEST = 1e3
"""Weights beyond it have run away."""
LEAST_STD, MOST_STD = 1e-6, 1e2
"""Deviation of a weight matrix."""
MOST_COSINE = 0.9
"""Mean cosine of two slots before they have read anything."""
MOST_LOSS = 100.0
DEPENDENT, LEAST_ENERGY = 0.5, 0.05
"""Input dependence from which on a reader believes it, and the share of the mean square that texts must change then."""
SAME = 1e-6
"""Predicted numbers that differ by less, of the largest, are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        name: Of the weights, or "concepts", "loss", "predictions".
        rule: What must hold.
        value: What was found.
        advice: What to do.
    """

    name: str
    rule: str
    value: str
    advice: str


def health(
    model: ConceptPreTrainedModel, batches: Iterable[Mapping[str, Tensor]] = ()
) -> list[Finding]:
    """All findings: of the weights, and of what the model says of batches.

    Biases, norms and parts that begin at zero are not blamed for being as they began.

    Args:
        model: Of any of the three classes. It is left in the mode it was in.
        batches: What its `forward` takes; without `labels` the loss is not looked at. An encoder alone
            predicts nothing, and only its concepts are looked at.

    Returns:
        Nothing where nothing is wrong.
    """
    return [*weights(model), *slots(model), *answers(model, batches)]


def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters of which a number is NaN or infinite."""
    return [name for name, values in model.named_parameters() if not values.isfinite().all()]


@torch.no_grad()
def weights(model: nn.Module) -> list[Finding]:
    """Findings of each parameter: finite, none beyond 1e3, a deviation in [1e-6, 1e2]."""
    return [
        finding
        for name, values in model.named_parameters()
        for finding in _weight(name, values.detach(), model.get_submodule(name.rpartition(".")[0]))
    ]


def _weight(name: str, values: Tensor, module: nn.Module) -> Iterator[Finding]:
    broken = int((~values.isfinite()).sum())
    if broken:
        yield Finding(
            name=name,
            rule="weights are finite",
            value=f"{broken} of {values.numel()} are NaN or infinite",
            advice="Training broke before this was stored: go back to an earlier checkpoint, with a lower "
            "learning rate, or clipped gradients.",
        )
        return
    largest = float(values.abs().max())
    if largest > LARGEST:
        yield Finding(
            name=name,
            rule=f"no weight is beyond ±{LARGEST:g}",
            value=f"{largest:.4g}",
            advice="Weights ran away: lower the learning rate, clip gradients, or decay weights.",
        )
    # A deviation is asked of matrices alone: biases and norms may stay as they began, all the same.
    if values.dim() < 2 or values.numel() < 2:
        return
    std = float(values.double().std())
    if std > MOST_STD:
        yield Finding(
            name=name,
            rule=f"the deviation of a matrix is at most {MOST_STD:g}",
            value=f"{std:.4g}",
            advice="Weights ran away, or began too wide: look at initializer_range and the learning rate.",
        )
    untouched = bool(getattr(module, "begins_at_zero", False)) and largest == 0
    if std < LEAST_STD and not untouched:
        yield Finding(
            name=name,
            rule=f"the deviation of a matrix is at least {LEAST_STD:g}",
            value=f"{std:.4g}",
            advice="All its weights are the same: it was not initialised, its weights were not loaded, or weight "
            "decay has emptied a part that gets no gradient.",
        )


@torch.no_grad()
def slots(model: ConceptPreTrainedModel) -> list[Finding]:
    """Finding of the slots as the encoder begins with them: their mean cosine is at most 0.9."""
    first_CH = _encoder(model).slots().detach().double()
    number = len(first_CH)
    if number < 2 or not first_CH.isfinite().all():
        return []
    unit_CH = torch.nn.functional.normalize(first_CH, dim=-1)
    pairs = unit_CH.sum(0).square().sum() - unit_CH.square().sum()
    mean = float(pairs) / (number * (number - 1))
    if mean <= MOST_COSINE:
        return []
    return [
        Finding(
            name="slots",
            rule=f"the mean cosine of two slots, before they read, is at most {MOST_COSINE:g}",
            value=f"{mean:.4f}",
            advice="Slots are nearly one and will read alike: add a concept loss, or concept_position_type, and "
            "train anew.",
        )
    ]


@torch.no_grad()
def answers(
    model: ConceptPreTrainedModel, batches: Iterable[Mapping[str, Tensor]]
) -> list[Finding]:
    """Findings of what a model gives: finite, a loss in [0, 100], more than one prediction.

    Predictions are compared over all batches, and only where there are two or more.
    """
    losses: list[float] = []
    predicted: list[Tensor] = []
    broken = numbers = 0
    with evaluating(model):
        for batch in batches:
            out = model(**{name: value.to(model.device) for name, value in batch.items()})
            given = out.last_hidden_state if isinstance(model, ConceptModel) else out.logits
            broken, numbers = broken + int((~given.isfinite()).sum()), numbers + given.numel()
            if not isinstance(model, ConceptModel):
                # Of many words, only which: the logits of a batch can be larger than the model.
                one = given.shape[-1] == 1
                predicted.append((given[..., 0] if one else given.argmax(-1)).flatten().cpu())
                losses += [] if out.loss is None else [float(out.loss)]
    found = list(_diverged(losses))
    if not broken:
        return found + list(_constant(predicted))
    what = "concepts" if isinstance(model, ConceptModel) else "predictions"
    broke = Finding(
        name=what,
        rule="what the model gives is finite",
        value=f"{broken} of {numbers} numbers are NaN or infinite",
        advice="Look at the findings of its weights; without any, try float32.",
    )
    return [broke, *found]


def concepts(measures: Mapping[str, float]) -> list[Finding]:
    """Finding of what was measured of concepts (`analysis.measure`): dependence is a share of more than noise."""
    dependence, energy = measures["input_dependence"], measures["input_energy"]
    if dependence < DEPENDENT or energy >= LEAST_ENERGY:
        return []
    return [
        Finding(
            name="concepts",
            rule=f"where input_dependence is {DEPENDENT:g} or more, input_energy is {LEAST_ENERGY:g} or more",
            value=f"{dependence:.4g} and {energy:.4g}",
            advice="Concepts are nearly one vector in all slots and all texts, and dependence is a share of what "
            "little is left: the encoder does not read. Train longer, or with larger first weights (init_range) or "
            "another rate.",
        )
    ]


def _diverged(losses: list[float]) -> Iterator[Finding]:
    bad = [loss for loss in losses if not 0 <= loss <= MOST_LOSS]
    if bad:
        yield Finding(
            name="loss",
            rule=f"the loss is in [0, {MOST_LOSS:g}]",
            value=f"{bad[0]:.4g} in {len(bad)} of {len(losses)} batches",
            advice="Guessing costs the log of the number of choices (10.8 nats of 50,000 tokens): training "
            "diverged, or labels are not of this model.",
        )


def _constant(predicted: list[Tensor]) -> Iterator[Finding]:
    """Predicted numbers, or the classes or tokens that are predicted."""
    values = torch.cat(predicted) if predicted else torch.zeros(0)
    spread = SAME * values.abs().max() if values.is_floating_point() and len(values) else 0
    if len(values) < 2 or values.max() - values.min() > spread:
        return
    yield Finding(
        name="predictions",
        rule="more than one thing is predicted",
        value=f"{values[0].item():.6g} in all {len(values)} places",
        advice="The model does not use its input: look at input_dependence and input_energy; if both are high, at "
        "the decoder or the head. Of a few texts of one class this may be right: take others.",
    )


def _encoder(model: ConceptPreTrainedModel) -> ConceptModel:
    """The encoder of a model of any class."""
    if isinstance(model, ConceptModel):
        return model
    assert isinstance(model, ConceptForMaskedLM | ConceptForSequenceClassification)
    return model.encoder
