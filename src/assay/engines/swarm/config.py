"""What one run of the swarm is: a flat, checked, frozen configuration.

No torch here: `assay run --dry-run` validates studies with this module.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Mode = Literal["assay", "reference", "legacy", "local-adamw"]
Payload = Literal["1bit", "fp16", "fp32"]
Batches = Literal["disjoint", "aligned", "same", "fixed"]
Schedule = Literal["cosine", "linear", "constant", "wsd"]
Support = Literal["own", "leader"]
Apply = Literal["sign", "raw"]


MOST_TIER = 7
"""Tiers are reported one by one; a client of tier 7 has 1/128 of the neurons."""


LEAST_LUCK = 0.05
PATIENCE_S = 3.0
"""A witness reports when it has every member's payload, or so long after its own."""
STABLE = 0.8
"""Share of the schedule "wsd" (warm-up, stable, decay) before its decay."""


class Cut(NamedTuple):
    """How tensors are cut into chunks: largest side, coefficients kept, largest side along neurons."""

    chunk: int
    top_k: int
    neurons: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a decoder-only transformer, at full width.

    Attributes:
        tier_gates: Whether every feed-forward block has a learnable factor for each tier.
        suffix_logits: Whether every feed-forward block learns how far its suffix is let in.
    """

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocab: int
    tier_gates: bool = False
    suffix_logits: bool = False

    def width(self, tier: int) -> int:
        """Neurons of a feed-forward block of a client of this tier: ffn / 2^tier."""
        most = min(MOST_TIER, (self.ffn & -self.ffn).bit_length() - 1)
        if not 0 <= tier <= most:
            raise ValueError(
                f"A tier must be from 0 to {most}: each halves the {self.ffn} neurons of a feed-forward "
                f"block evenly; got {tier}."
            )
        return self.ffn // 2**tier


def divisor(size: int, most: int) -> int:
    """The largest divisor of `size` that is at most `most`."""
    return next(d for d in range(min(size, most), 0, -1) if size % d == 0)


MODELS = {
    # 34,124,544 parameters: the "NanoGPT-20M" of both logs.
    "nanogpt-34m": Shape(hidden=256, layers=8, heads=8, ffn=1024, vocab=50257),
    "small": Shape(hidden=128, layers=4, heads=4, ffn=512, vocab=256),
    "tiny": Shape(hidden=64, layers=2, heads=2, ffn=256, vocab=256),
}
"""Models by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmConfig:
    """Clients of several tiers that train one nested model."""

    model: str = "small"
    """Sizes by name: "nanogpt-34m", "small" or "tiny"."""
    tiers: tuple[int, ...] = (0, 1, 1, 1)
    """One entry a client: it trains the first ffn / 2^tier neurons of each feed-forward block."""
    steps: int = 100
    """Rounds: every client computes one gradient in each."""
    batch: int = 32
    """Sequences of a round, all clients together; divided as evenly as can be."""
    seq_len: int = 128
    """Tokens of a sequence that are predicted."""
    corpus: str = "python"
    """Text: "python" (the standard library's sources, on every machine), "tinyshakespeare" (in the
    data folder), or a file or folder of your own there, as "PATH@sha256:DIGEST", one token a byte."""
    batches: Batches = "disjoint"
    """Data of a round's clients: "disjoint" parts, dealt anew in each round, or "aligned", by tier and
    number; the "same" part for all; or "fixed": the run's first part for all in every round."""
    mode: Mode = "assay"
    """How updates are made and applied: "assay" (ours), "reference" (DeMo), "legacy" (the fork that
    wrote the logs) or "local-adamw" (nothing is exchanged)."""
    payload: Payload = "1bit"
    """What is sent of a coefficient: its sign, or its value in 16 or 32 bits."""
    apply: Apply = "sign"
    """Step along the sign of the aggregated update, or along its value."""
    chunk: int = 64
    """Largest side of a chunk that is transformed together."""
    top_k: int = 8
    """Coefficients that a chunk sends."""
    chunks: Literal["own", "aligned"] = "own"
    """Side along the neurons: the largest for a client's own tier, or one that fits every tier."""
    support: Support = "own"
    """Which coefficients a client sends: its own largest, or those that the widest member sends."""
    decay: float = 0.999
    """What is left of the untransmitted update after a round."""
    lr: float = 4e-4
    """Peak learning rate."""
    final_lr: float = 4e-5
    """Learning rate at the end of the schedule."""
    warmup_steps: int = 10
    """Rounds of linear warm-up from 0."""
    schedule: Schedule = "cosine"
    """After the warm-up: down to `final_lr` along a cosine or a line, not at all, or ("wsd") along a
    line in the last fifth."""
    schedule_steps: int = 0
    """Rounds of the schedule; 0 is `steps`. The cosine ends there."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 0.0
    """Largest norm of a client's gradient; 0 does not clip."""
    width_power: float = 0.0
    """A narrow client's feed-forward output is multiplied by (full / active)^p; the source's p is 0.5."""
    residual_power: float = 0.0
    """What it adds to the residual stream by (active / full)^p; the source's p is 0.5."""
    norm_power: float = 0.0
    """The norm before it by (active / full)^p; the source's p is 0.25."""
    tier_gates: bool = False
    """A learnable factor exp(a) of each feed-forward block for each tier, a = 0 at the start."""
    share_prefix: tuple[bool, ...] = ()
    """Whether each client sends updates of its feed-forward neurons; () is all."""
    helper_fractions: tuple[float, ...] = ()
    """Share of its own neurons that each client trains besides, out of the suffix; () is none."""
    helper_interval: int = 16
    """Rounds after which other helper neurons are drawn."""
    suffix_gate: Literal["off", "linear", "cosine"] = "off"
    """How a full-width client lets in the neurons that the core tier lacks: at once, or along a ramp."""
    gate_tier: int = 1
    """The core tier: its neurons are never gated."""
    gate_learned: bool = False
    """Multiply the ramp by the sigmoid of a learnable logit for each block, 6 at the start."""
    gate_start: int = 0
    """Last round in which the suffix is shut."""
    gate_warmup: int = 100
    """Rounds of the ramp; 0 opens it at once."""
    distill: Literal["add", "mix"] = "add"
    """How small clients learn from the full one: CE + beta KD, or (1 - beta) CE + beta KD."""
    distill_beta: float = 0.0
    """Largest weight of that; 0 is off. It needs one part of the data for all clients."""
    distill_k: int = 64
    """Classes that the teacher sends for a token; the others are one tail."""
    distill_temperature: float = 1.0
    """Of both distributions."""
    distill_start: int = 0
    """Last round without it."""
    distill_warmup: int = 100
    """Rounds of the ramp to `distill_beta`."""
    eval_interval: int = 20
    """Rounds between two evaluations on held-out text."""
    eval_sequences: int = 64
    """Held-out sequences of an evaluation."""
    checkpoint_interval: int = 0
    """Rounds between two checkpoints; 0 writes none."""
    stop_s: float = 0.0
    """Simulated seconds after which the run ends, if `steps` are not done by then; 0 is never."""
    epoch_rounds: int = 0
    """Rounds of an epoch, at whose end clients may join; 0 is one epoch."""
    cold_rounds: int = 0
    """First rounds of a client that joined late in which what it sends is not applied."""
    latency_ms: tuple[float, float] = (0.0, 0.0)
    """A payload's way takes a time between these, drawn for each (simulated)."""
    loss: float = 0.0
    """Probability that a payload is lost on its way; it is asked for again."""
    corrupt: float = 0.0
    """Probability that a payload arrives altered; it is refused and asked for again."""
    bandwidth: float = 0.0
    """Bytes a second between two clients; 0 has no limit."""
    churn: float = 0.0
    """Probability that a client dies in an epoch; it joins again with the next one."""
    compute_s: tuple[float, ...] = ()
    """Simulated seconds that each client needs for a gradient, in turn; () is 1 for all."""
    store: tuple[Literal["payloads", "gradients", "updates", "model"], ...] = ()
    """What is kept for analysis, each round up to `store_steps`: transmitted payloads, raw
    gradients of the first layer's feed-forward block, the update that was applied to the full
    model; and at the end the full model."""
    store_steps: int = 0
    """Rounds that are kept; 0 is all."""

    def __post_init__(self) -> None:
        """Check every field; a message names the rule, the value and the way out."""
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}; got {self.model!r}")
        if not 1 <= len(self.tiers) <= 256:
            raise ValueError(f"tiers must name 1 to 256 clients; got {len(self.tiers)}")
        for tier in self.tiers:
            MODELS[self.model].width(tier)
        for name in (
            "steps",
            "batch",
            "seq_len",
            "chunk",
            "top_k",
            "eval_interval",
            "eval_sequences",
            "helper_interval",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.batches in ("disjoint", "aligned") and self.batch < len(self.tiers):
            raise ValueError(
                f"batch must give each of {len(self.tiers)} clients a sequence; got {self.batch}"
            )
        if self.mode == "reference" and len(set(self.tiers)) > 1:
            raise ValueError(
                f"mode 'reference' is DeMo, which knows clients of one tier; got tiers {self.tiers}. "
                "Take mode 'assay' or 'legacy'."
            )
        self._check_numbers()
        self._check_network()
        self._check_teaching()
        self._check_neurons()

    def _check_numbers(self) -> None:
        """Ranges of the numbers."""
        for name in (
            "warmup_steps",
            "schedule_steps",
            "checkpoint_interval",
            "store_steps",
            "epoch_rounds",
            "cold_rounds",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        for name in ("lr", "final_lr", "weight_decay", "clip", "stop_s", "bandwidth"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be a number of at least 0; got {getattr(self, name)}"
                )
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be from 0 to 1; got {self.decay}")

    def _check_network(self) -> None:
        """Faults and epochs."""
        for name in ("loss", "corrupt", "churn"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1; got {getattr(self, name)}")
        if (1 - self.loss) * (1 - self.corrupt) < LEAST_LUCK:
            raise ValueError(
                f"loss and corrupt must let one payload in {1 / LEAST_LUCK:.0f} through; got {self.loss}, "
                f"{self.corrupt}"
            )
        if not 0 <= self.latency_ms[0] <= self.latency_ms[1] < 1000 * PATIENCE_S:
            raise ValueError(
                "latency_ms must be two numbers, the smaller first, below the time for which witnesses wait "
                f"({1000 * PATIENCE_S:g}); got {self.latency_ms}"
            )
        if any(not 0 < each < 1e6 for each in self.compute_s):
            raise ValueError(f"compute_s must be positive; got {self.compute_s}")
        if self.churn and self.epoch_rounds < 1:
            raise ValueError(
                "churn needs epochs: set epoch_rounds, so that who died can join again"
            )

    def _check_teaching(self) -> None:
        """Gate and distillation."""
        powers = (self.width_power, self.residual_power, self.norm_power)
        if not all(math.isfinite(power) for power in powers):
            raise ValueError(
                f"width_power, residual_power and norm_power must be finite; got {powers}"
            )
        if self.gate_start < 0 or self.gate_warmup < 0:
            raise ValueError(
                "gate_start and gate_warmup must not be negative; got "
                f"{self.gate_start}, {self.gate_warmup}"
            )
        self.shape.width(self.gate_tier)
        if self.distill_beta and self.batches not in ("same", "fixed"):
            raise ValueError(
                "distill_beta needs a teacher on the same sequences: set batches to 'same' or 'fixed'; "
                f"got {self.batches!r}"
            )
        if self.distill_beta and not min(self.tiers) == 0 < max(self.tiers):
            raise ValueError(
                "distill_beta needs a full client (tier 0) that teaches, and narrower ones; the tiers are "
                f"{self.tiers}"
            )
        warm = 0 < self.distill_temperature < math.inf
        if not 0 <= self.distill_beta <= 1 or self.distill_k < 1 or not warm:
            raise ValueError(
                "distill_beta must be from 0 to 1, distill_k at least 1 and distill_temperature positive; "
                f"got {self.distill_beta}, {self.distill_k}, {self.distill_temperature}"
            )
        if self.distill_start < 0 or self.distill_warmup < 0:
            raise ValueError(
                "distill_start and distill_warmup must not be negative; got "
                f"{self.distill_start}, {self.distill_warmup}"
            )

    def _check_neurons(self) -> None:
        """Helper neurons, and chunks that clients of several tiers share."""
        for name in ("helper_fractions", "share_prefix", "compute_s"):
            if len(getattr(self, name)) > len(self.tiers):
                raise ValueError(
                    f"{name} has an entry for each client, repeated if there are fewer; {len(self.tiers)} "
                    f"clients, got {len(getattr(self, name))}"
                )
        if any(not 0 <= each <= 1 for each in self.helper_fractions):
            raise ValueError(f"helper_fractions must be from 0 to 1; got {self.helper_fractions}")
        apart = any(self.helper_fractions) or not all(self.share_prefix)
        if apart and self.mode != "assay":
            raise ValueError(
                "helper_fractions and share_prefix need mode 'assay', whose receivers count the senders of "
                f"each element; got {self.mode!r}"
            )
        for client, tier in enumerate(self.tiers):
            suffix = self.shape.ffn - self.shape.width(tier)
            if tier and self.helpers(client) > suffix:
                raise ValueError(
                    f"helper_fractions must leave client {client} (tier {tier}) at most the {suffix} "
                    f"neurons that it has not; got {self.helpers(client)}"
                )
        sides = {divisor(self.shape.width(tier), self.cut.neurons) for tier in self.tiers}
        if self.support == "leader" and (len(sides) > 1 or any(self.helper_fractions)):
            raise ValueError(
                "support 'leader' needs equal chunks in all tiers, and no helper neurons: set chunks to "
                f"'aligned'; the sides along the neurons are {sorted(sides)}"
            )
        if self.gate_learned and self.suffix_gate == "off":
            raise ValueError("gate_learned needs a suffix_gate: 'linear' or 'cosine'")

    def shares_prefix(self, client: int) -> bool:
        """Whether a client sends updates of its feed-forward neurons."""
        return not self.share_prefix or self.share_prefix[client % len(self.share_prefix)]

    def helpers(self, client: int) -> int:
        """Helper neurons that a client trains in each block: a share of its own; none in tier 0."""
        if not self.helper_fractions or not self.tiers[client]:
            return 0
        share = self.helper_fractions[client % len(self.helper_fractions)]
        return int(self.shape.width(self.tiers[client]) * share)

    def stored(self, client: int) -> int:
        """The tier that a client stores: the full model if it has helper neurons, else its own."""
        return 0 if self.helpers(client) else self.tiers[client]

    @property
    def cut(self) -> Cut:
        """How tensors are cut into chunks."""
        if self.chunks == "own":
            return Cut(self.chunk, self.top_k, self.chunk)
        narrowest = min(self.shape.width(tier) for tier in self.tiers)
        return Cut(self.chunk, self.top_k, divisor(narrowest, self.chunk))

    @property
    def has_faults(self) -> bool:
        """Whether the network does anything but deliver."""
        return bool(any(self.latency_ms) or self.loss or self.corrupt or self.bandwidth)

    @property
    def shape(self) -> Shape:
        """The sizes of the full model."""
        return replace(
            MODELS[self.model], tier_gates=self.tier_gates, suffix_logits=self.gate_learned
        )

    def suffix_factor(self, step: int) -> float:
        """How far the suffix is let in in a round: 0 until `gate_start`, 1 after the ramp."""
        if self.suffix_gate == "off":
            return 1.0
        if step <= self.gate_start:
            return 0.0
        done = min(1.0, (step - self.gate_start) / self.gate_warmup) if self.gate_warmup else 1.0
        return done if self.suffix_gate == "linear" else 0.5 * (1 - math.cos(math.pi * done))

    def lr_at(self, step: int) -> float:
        """Learning rate of a round, counted from 1: linear warm-up, then the schedule."""
        total = self.schedule_steps or self.steps
        if step <= 0:
            return 0.0
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
        left = {
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "linear": 1 - done,
            "constant": 1.0,
            "wsd": min(1.0, (1 - done) / (1 - STABLE)),
        }[self.schedule]
        return self.final_lr + (self.lr - self.final_lr) * left
