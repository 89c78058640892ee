"""What a run of the concepts engine is: flat, checked, frozen configurations. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from assay.engines.concepts.tasks import task_of

Objective = Literal["mlm", "whole-word", "span", "tsdae", "diffusion", "prefix"]
ConceptLoss = Literal[
    "orthogonality",
    "soft-orthogonality",
    "uniformity",
    "variance",
    "covariance",
    "vicreg",
    "combined",
    "spread",
    "input-variance",
    "input-uniformity",
    "input-combined",
]
SlotPlaces = Literal["none", "sinusoidal", "learned"]
Decoder = Literal["perceiver", "position", "weighted", "diffusion"]
Modulation = Literal["zero", "normal", "plain", "plain-alone"]
TimeWeight = Literal["none", "clamped", "elbo"]
Weighting = Literal["fixed", "learned", "kendall-gal"]
Head = Literal["cls-query", "weighted", "mean", "decoder", "pair"]
SIZES = (
    "seq_len", "held_blocks", "hidden", "layers", "inner", "slots", "decoder_layers",
    "batch", "steps", "eval_interval", "tune_batch",
)  # fmt: skip
LEAST_HELD = 4
"""Held-out texts: two while training, two at the end."""
SHARES = ("dropout", "mask_rate", "t_min", "label_smoothing")
WITH_RATE = frozenset({"mlm", "whole-word", "span", "tsdae"})
TIMED = frozenset({"diffusion", "prefix"})
DECODERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("mlm", "whole-word", "span"), ("perceiver", "position", "weighted")),
    "tsdae": ("position",),
    **dict.fromkeys(TIMED, ("diffusion",)),
}
"""Objective → decoders that can rebuild what it hides, and show them nothing that gives it away."""
USUAL: Mapping[str, Mapping[str, Any]] = {
    "span": {"mask_rate": 0.3},
    "tsdae": {"decoder": "position", "mask_rate": 0.6},
    **{objective: {"decoder": "diffusion"} for objective in TIMED},
}
"""Objective → settings that `assay concepts pretrain` takes where none are given; others have the defaults."""


AMONG_SLOTS = ("orthogonality", "soft-orthogonality", "uniformity", "combined", "spread")
"""Concept losses of different slots of one text."""
AMONG_TEXTS = ("input-variance", "input-uniformity", "input-combined")
"""Concept losses of different texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """An encoder that learns from texts alone."""

    corpus: str = "python"
    """"python" (this interpreter's standard library), hub:NAME, or in the data folder a text file or a
    folder with train.txt and valid.txt."""
    tokenizer: str = ""
    """A folder or a name of the hub; empty: one is trained on the corpus."""
    vocab_size: int = 4096
    """Of the tokenizer that is trained."""
    seq_len: int = 128
    """Tokens of a text, special ones included."""
    packed: bool = True
    """Documents one after another, cut to equal lengths; otherwise each is cut off or filled up."""
    train_blocks: int = 0
    """Texts of the corpus to train on, at most; 0 is all."""
    held_blocks: int = 256
    """Held-out texts on which loss and concepts are measured: a half while training, the other at
    the end."""

    architecture: Literal["concepts", "bert"] = "concepts"
    """"bert": a plain encoder of the same width, as many layers as give the same size."""
    hidden: int = 128
    """H, numbers of a concept."""
    layers: int = 2
    """Of the encoder."""
    heads: int = 0
    """Of attention; 0: one for every 64 numbers, 8 at most."""
    inner: int = 256
    """Width inside the feed-forward parts."""
    slots: int = 32
    """C, concepts of a text; at most as many as its tokens."""
    token_dim: int = 0
    """Numbers of a token's embedding; 0 is H, fewer are projected."""
    dropout: float = 0.1
    """Of embeddings, feed-forward parts and attention."""
    init_range: float = 0.02
    """Deviation of first weights; small encoders that learn for hundreds of steps need more (study first-weights)."""
    slot_places: SlotPlaces = "none"
    """Added to the slots."""
    bidirectional: bool = False
    """Tokens read the concepts too (BiXT)."""
    recursive: bool = False
    """One layer, applied again and again."""
    iterations: int = 0
    """How often; 0 is `layers` times."""
    tied: bool = True
    """The last layer's weights are the token embeddings."""
    dense_head: bool = False
    """Decode tokens that nobody asks for too, and compute their logits: the same loss, slower."""

    objective: Objective = "mlm"
    """What is hidden: tokens, whole words, spans, tokens that the encoder is not given (tsdae), a share that
    varies (diffusion), or such a share of a text whose beginning alone is read (prefix)."""
    mask_rate: float = 0.15
    """Share of tokens that are hidden; under tsdae, deleted, and 0.6 in its paper."""
    decoder: Decoder = "perceiver"
    """What rebuilds them: under tsdae position, under diffusion and prefix diffusion, else one of the others."""
    decoder_layers: int = 2
    """Of the diffusion decoder."""
    modulation: Modulation = "zero"
    """How the time reaches them: adaLN-Zero, the same with gates that begin as any weight, or scale
    and shift alone ("plain" before self-attention, "plain-alone" without any)."""
    t_min: float = 0.05
    """Smallest share of hidden tokens."""
    time_weight: TimeWeight = "none"
    """Weight of a text by its share of hidden tokens: none, the source's, or the true 1 / t."""
    label_smoothing: float = 0.0
    """Of the training loss."""
    concept_losses: tuple[ConceptLoss, ...] = ()
    """Added to it, on the concepts."""
    concept_weight: float = 0.1
    """Of all of them together, where weights are fixed."""
    weighting: Weighting = "fixed"
    """Of task and concept losses."""
    weighting_lr: float = 1e-2
    """Learning rate of learned weights; Adam moves them by about so much a step."""

    batch: int = 32
    """Texts a step."""
    steps: int = 600
    """Updates."""
    lr: float = 5e-4
    """Largest learning rate, AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Of the learning rate after the warm-up."""
    warmup: int = 50
    """Steps over which it rises."""
    weight_decay: float = 0.01
    """Decoupled; not of biases and norms."""
    clip: float = 1.0
    """Largest norm of all gradients together; 0 does not clip."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products while training (autocast); weights, and all that is measured, are float32."""
    eval_interval: int = 200
    """Steps between measurements and checkpoints."""

    evaluate: tuple[str, ...] = ()
    """Labelled tasks on which the encoder is judged at the end: cola, sst2, mrpc, stsb, qqp, mnli, qnli,
    rte, sick-r, sick-e, paws, qqp-subset; with hub: before a name, its examples are read from the hub."""
    head: Head = "weighted"
    """Of the classifier that is fine-tuned; see `ConceptConfig`."""
    tune_epochs: int = 3
    """Of fine-tuning; 0 does none, and leaves the measures of the frozen encoder."""
    tune_lr: float = 3e-4
    """Largest learning rate of fine-tuning."""
    tune_batch: int = 32
    """Examples a step of fine-tuning."""
    tune_examples: int = 0
    """Of a task's training part at most; 0 is all."""

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_architecture(self)
        _check_objective(self)
        if len({task_of(name).name for name in self.evaluate}) != len(self.evaluate):
            raise ValueError(f"evaluate must name different tasks; got {', '.join(self.evaluate)}")

    @property
    def attention_heads(self) -> int:
        """Heads, chosen where they are not given."""
        return self.heads or min(max(self.hidden // 64, 1), 8)


def _check_numbers(c: PretrainConfig) -> None:
    for name in SIZES:
        if getattr(c, name) < 1:
            raise ValueError(f"{name} must be 1 or more; got {getattr(c, name)}")
    for name in SHARES:
        if not 0 <= getattr(c, name) < 1:
            raise ValueError(f"{name} must be in [0, 1); got {getattr(c, name)}")
    for name in ("lr", "weighting_lr", "init_range", "tune_lr"):
        if not getattr(c, name) > 0:
            raise ValueError(f"{name} must be above 0; got {getattr(c, name)}")
    for name in (
        "clip",
        "weight_decay",
        "warmup",
        "train_blocks",
        "concept_weight",
        "token_dim",
        "iterations",
        "tune_epochs",
        "tune_examples",
    ):
        if not getattr(c, name) >= 0:
            raise ValueError(f"{name} must be 0 or more; got {getattr(c, name)}")
    if c.held_blocks < LEAST_HELD:
        raise ValueError(
            f"held_blocks must be {LEAST_HELD} or more, a half of them for the end; got {c.held_blocks}"
        )


def _check_architecture(c: PretrainConfig) -> None:
    if c.hidden % c.attention_heads:
        raise ValueError(
            f"hidden must be a multiple of heads; got {c.hidden} and {c.attention_heads}. Give heads = 0 to have them "
            "chosen"
        )
    if c.architecture == "concepts" and c.slots > c.seq_len:
        raise ValueError(
            f"slots must be at most seq_len: more concepts than tokens squeeze nothing; got {c.slots} and "
            f"{c.seq_len}. Give fewer slots or longer texts"
        )
    if c.tied and c.token_dim not in (0, c.hidden):
        raise ValueError(f"tied needs token_dim 0; got {c.token_dim}. Give tied = false")
    if c.iterations and not c.recursive:
        raise ValueError("iterations are of the recursive encoder; give recursive = true")
    if c.architecture == "bert":
        if c.objective not in ("mlm", "whole-word", "span"):
            raise ValueError(
                f'architecture "bert" rebuilds what it reads: objective mlm, whole-word or span; got {c.objective}'
            )
        given = [
            name for name in ("bidirectional", "recursive", "concept_losses") if getattr(c, name)
        ]
        if given:
            raise ValueError(
                f'architecture "bert" has no {", ".join(given)}: those are of concepts'
            )


def _check_objective(c: PretrainConfig) -> None:
    if c.objective in WITH_RATE and c.mask_rate <= 0:
        raise ValueError(f"mask_rate must be above 0 under {c.objective}; got {c.mask_rate}")
    if c.decoder not in DECODERS[c.objective]:
        may = " or ".join(f'"{name}"' for name in DECODERS[c.objective])
        raise ValueError(f'objective {c.objective} needs decoder = {may}; got "{c.decoder}"')
    if c.time_weight != "none" and c.objective not in TIMED:
        raise ValueError(
            f"time_weight weighs by the share that is hidden, which is the same in all texts under "
            f"{c.objective}; give objective diffusion or prefix, or time_weight none"
        )
    if c.time_weight != "none" and c.t_min <= 0:
        raise ValueError("t_min must be above 0 where the loss is divided by t")
    if len(set(c.concept_losses)) != len(c.concept_losses):
        raise ValueError(f"concept_losses must differ; got {', '.join(c.concept_losses)}")
    if c.weighting != "fixed" and not c.concept_losses:
        raise ValueError(f"weighting {c.weighting} needs concept_losses to weigh")
    among = [name for name in c.concept_losses if name in AMONG_SLOTS]
    if c.slots < 2 and among:
        raise ValueError(
            f"{', '.join(among)} compares slots with one another; got slots = {c.slots}"
        )
    over = [name for name in c.concept_losses if name in AMONG_TEXTS]
    if c.batch < 2 and over:
        raise ValueError(
            f"{', '.join(over)} compares the texts of a batch; got batch = {c.batch}. Give 2 or more"
        )
    if c.concept_losses and "orthogonality" in c.concept_losses and c.slots > c.hidden:
        raise ValueError(
            f"orthogonality needs slots ≤ hidden: {c.slots} vectors of {c.hidden} numbers cannot all be orthogonal. "
            "Give fewer slots, or soft-orthogonality"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CostConfig:
    """What an encoder costs at a length."""

    encoder: Literal["concepts", "bidirectional", "transformer"] = "concepts"
    """Slots that read the tokens; the same with tokens that read the slots; a plain Transformer."""
    tokens: int = 512
    """N, of one text."""
    hidden: int = 256
    """Width of all; a head for every 64."""
    layers: int = 2
    """Of all."""
    inner: int = 512
    """Width inside the feed-forward parts."""
    slots: int = 64
    """C."""
    repeats: int = 5
    """Times that it is measured; the median counts."""

    def __post_init__(self) -> None:
        for name in ("tokens", "hidden", "layers", "inner", "slots", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}")
        if self.hidden > 64 and self.hidden % 64:
            raise ValueError(f"hidden must be a multiple of 64, of a head; got {self.hidden}")
