"""What each measure of a trained encoder means, and the levels of the source log. No torch here.

`measure` in `assay.engines.concepts.analysis` gives values under these names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from assay.core.engine import Metric

DISTINCT = 0.1
"""A slot reads otherwise than the mean slot from this total variation distance on."""
STATIC = "Slots that are the same in every text satisfy it."
"""Said of every measure that a model can meet without reading its text."""

PARTS: Mapping[str, str] = {
    "mean": f"of the mean over texts, the source's matrix. {STATIC}",
    "text": f"of the concepts of one text, mean over texts. {STATIC}",
    "input": "of one text's concepts less the mean of all texts: in how many directions texts change them, not how much.",
}
"""Matrices [C, H] whose singular values σ are measured: ending of the name → what they are of."""


@dataclass(frozen=True, slots=True)
class Level:
    """From where on the source log called a value ok, and from where on good.

    Attributes:
        ok: That value. Larger is better, unless `good` is the smaller one.
        good: That value.
        slots: The level is a number of dimensions for a model with so many slots, and says nothing of
            one with fewer; None where it is a share.
    """

    ok: float
    good: float
    slots: int | None = None


LEVELS: Mapping[str, Level] = {
    "rank_mean": Level(40, 90, slots=128),
    "rank_mean_share": Level(0.3, 0.7),
    "dominance_mean": Level(0.5, 0.3),
    "dims95_mean": Level(10, 50, slots=128),
    "participation_share": Level(0.1, 0.3),
    "isotropy": Level(0.001, 0.01),
    "cosine_mean": Level(0.5, 0.3),
    "cosine_max": Level(0.8, 0.6),
    "uniformity": Level(0.6, 0.3),
    "std_mean": Level(0.3, 0.8),
    "std_min": Level(0.01, 0.1),
}
"""Of the source log (S3), copied. None of them asks whether concepts depend on the text."""


def level(name: str, value: float, *, slots: int | None = None) -> str | None:
    """What the source log would say of a value: "good", "ok" or "bad"; None where it has no level.

    Args:
        name: Of the measure.
        value: As measured.
        slots: C; levels that count dimensions are left out where the model has fewer than they are for.
    """
    found = LEVELS.get(name)
    if found is None or (slots is not None and found.slots is not None and slots < found.slots):
        return None
    if found.good < found.ok:
        return "good" if value < found.good else "ok" if value < found.ok else "bad"
    return "good" if value >= found.good else "ok" if value >= found.ok else "bad"


def _spectral() -> dict[str, Metric]:
    """Measures of the singular values, for each of the three matrices."""
    kinds = {
        "rank_{}": Metric(says="Effective rank Σσ / σ_max {}", low=0.0, goal="max"),
        "rank_{}_share": Metric(
            says="Effective rank Σσ / σ_max, divided by min(C, H), {}", low=0.0, high=1.0, goal="max"
        ),
        "entropy_rank_{}": Metric(
            says="Effective rank exp(H(σ / Σσ)) (Roy & Vetterli 2007) {}", low=0.0, goal="max"
        ),
        "entropy_rank_{}_share": Metric(
            says="Effective rank exp(H(σ / Σσ)), divided by min(C, H), {}",
            low=0.0,
            high=1.0,
            goal="max",
        ),
        "dims95_{}": Metric(says="Dimensions that hold 95 % of Σσ² {}", low=0.0, goal="max"),
        "top1_share_{}": Metric(says="Share of the largest σ² in Σσ² {}", low=0.0, high=1.0),
        "top5_share_{}": Metric(says="Share of the five largest σ² in Σσ² {}", low=0.0, high=1.0),
        "dominance_{}": Metric(says="σ_max / Σσ {}", low=0.0, high=1.0, goal="min"),
    }  # fmt: skip
    found = {}
    for part, of in PARTS.items():
        for name, metric in kinds.items():
            says = metric.says.format(of)
            found[name.format(part)] = Metric(
                says=says, goal=metric.goal, low=metric.low, high=metric.high
            )
    return found


METRICS: Mapping[str, Metric] = {
    "input_dependence": Metric(
        says="Share of the variance of concepts, over texts and slots, that is within slots: over texts. 0: every "
        "text has the same slots, whatever their rank; 1: slots differ in nothing that all texts share. Of T texts, "
        "slots without a static part give about 1 − 1/T.",
        goal="max",
        low=0.0,
        high=1.0,
    ),
    "input_energy": Metric(
        says="The same divided by the mean square of concepts, not by their variance, so that a vector common to "
        "all slots counts as static too.",
        goal="max",
        low=0.0,
        high=1.0,
    ),
    **_spectral(),
    "cosine_mean": Metric(
        says=f"Mean |cosine| of two slots of one text. {STATIC}", goal="min", low=0.0, high=1.0
    ),
    "cosine_max": Metric(
        says=f"Largest signed cosine of two slots in any text; grows with the number of texts. {STATIC}",
        goal="min",
        low=-1.0,
        high=1.0,
    ),
    "cosine_max_text": Metric(
        says=f"Largest signed cosine of two slots of a text, mean over texts. {STATIC}",
        goal="min",
        low=-1.0,
        high=1.0,
    ),
    "uniformity": Metric(
        says="Mean exp(−2 d²) of the distance d of two slots of one text on the unit sphere: 1 where all are one, "
        f"e⁻⁴ = 0.018 at right angles (Wang & Isola 2020, without the log). {STATIC}",
        goal="min",
        low=0.0,
        high=1.0,
    ),
    "isotropy": Metric(
        says="λ_min / λ_max of the covariance [H, H] over all slots of all texts. The encoder ends in a layer norm, "
        "which leaves one direction without variance: 0 but for rounding, whatever was learnt. See isotropy_but_one.",
        goal="max",
        low=0.0,
        high=1.0,
    ),
    "isotropy_but_one": Metric(
        says="The same without the smallest λ, the one that the last layer norm takes. 0 where T·C < H. "
        f"{STATIC}",
        goal="max",
        low=0.0,
        high=1.0,
    ),
    "participation_ratio": Metric(
        says=f"(Σλ)² / Σλ² of that covariance: dimensions that are used. {STATIC}", goal="max", low=0.0
    ),
    "participation_share": Metric(
        says=f"The same divided by H. {STATIC}", goal="max", low=0.0, high=1.0
    ),
    "std_min": Metric(
        says=f"Smallest deviation of a number of a concept, over all slots of all texts. {STATIC}", low=0.0
    ),
    "std_mean": Metric(says=f"Mean of those H deviations. {STATIC}", low=0.0),
    "std_max": Metric(says=f"Largest of those H deviations. {STATIC}", low=0.0),
    "dims_collapsed": Metric(
        says=f"How many of those H deviations are below 1e-4. {STATIC}", goal="min", low=0.0
    ),
    "norm_mean": Metric(
        says="Mean length of a concept; after a layer norm whose weights are 1 always √H.", low=0.0
    ),
    "norm_min": Metric(says="Smallest length of a concept in any text.", low=0.0),
    "norm_max": Metric(says="Largest length of a concept in any text.", low=0.0),
    "text_cosine_mean": Metric(
        says="Mean cosine of two different texts, each the mean of its concepts: near 1, zero-shot similarity has "
        "little to tell texts apart by.",
        goal="min",
        low=-1.0,
        high=1.0,
    ),
    "attention_entropy": Metric(
        says="Entropy of what a slot reads divided by the log of the number of tokens that may be read, mean over "
        "heads, slots and texts: 1 reads all alike, 0 reads one token.",
        low=0.0,
        high=1.0,
    ),
    "attention_entropy_min": Metric(
        says="The same of the slot where it is smallest.", low=0.0, high=1.0
    ),
    "attention_distance": Metric(
        says="Total variation distance of what a slot reads from what the mean slot reads, per head; mean over "
        "heads, slots and texts.",
        low=0.0,
        high=1.0,
    ),
    "attention_distinct_share": Metric(
        says=f"Share of slots for which that distance is above {DISTINCT}.",
        goal="max",
        low=0.0,
        high=1.0,
    ),
    "attention_slot_balance": Metric(
        says="Tokens are divided among the slots by how much each reads of them; exp(entropy) of the slots' shares "
        "divided by C: 1 where all have alike.",
        low=0.0,
        high=1.0,
    ),
    "attention_first_share": Metric(
        says="Share of attention on the first token of a text, mean over heads, slots and texts; even reading of N "
        "tokens gives 1/N.",
        low=0.0,
        high=1.0,
    ),
    "attention_top_share": Metric(
        says="Share of attention on the token of a text that gets most of it, mean over texts.",
        low=0.0,
        high=1.0,
    ),
    "attention_padding_share": Metric(
        says="Share of attention on filled-up places: above 0, the mask is not honoured.",
        goal="min",
        low=0.0,
        high=1.0,
    ),
}  # fmt: skip
"""Name → meaning. Those of attention are means over the layers that were collected."""


CHIEF = ("input_dependence", "rank_mean", "rank_text", "rank_input", "cosine_mean")
"""Measures that are logged while training, and of an encoder before it; at the end all are."""


def under(split: str) -> dict[str, Metric]:
    """The definitions as a task declares them: `split/name`.

    Args:
        split: Whose texts are measured, such as "val".
    """
    return {f"{split}/{name}": metric for name, metric in METRICS.items()}
