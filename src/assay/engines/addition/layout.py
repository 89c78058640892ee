"""Names, shapes and initial spread of every parameter, and where each lies in a flat row.

All parameters of one seed are one row of float32 numbers; the rows of a cohort are stacked. Each
parameter begins at a multiple of 16 numbers (64 bytes), and so does each row: the arithmetic of
a seed must not depend on its place in the stack, and vector units look at the alignment.

Names are those of the released checkpoints. A matrix is [in, out], a factorised one A @ B.
"""

import math
from dataclasses import dataclass

from assay.engines.addition.config import SEQUENCE, VOCABULARY, AdditionConfig

ALIGN = 16
"""Numbers (of 4 bytes) between the possible starts of a parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One parameter tensor.

    Attributes:
        name: As in the released checkpoints.
        shape: [in, out] for matrices.
        component: What it is counted under.
        std: Spread of the initial normal numbers; 0 means the constant `fill`.
        fill: Initial constant where `std` is 0.
        start: First number in the flat row.
    """

    name: str
    shape: tuple[int, ...]
    component: str
    std: float = 0.0
    fill: float = 0.0
    start: int = 0

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A weight that the model multiplies with: one parameter, or the product of two.

    Attributes:
        left: Parameter name of the full matrix, or of the left factor.
        right: Parameter name of the right factor; empty for a full matrix.
    """

    left: str
    right: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The flat row of one seed.

    Attributes:
        slots: Parameters in order.
        row: Length of the row, padding included.
        qkv: The matrices that, side by side, are [query | key | value]; tied ones repeat.
    """

    slots: tuple[Slot, ...]
    row: int
    qkv: tuple[Matrix, ...]

    def count(self) -> dict[str, int]:
        """Trained numbers by component: unique storage, padding left out."""
        total: dict[str, int] = {}
        for slot in self.slots:
            total[slot.component] = total.get(slot.component, 0) + slot.numel
        return total


def matrix(name: str, rank: int) -> Matrix:
    """The matrix of a module called `name`, full or factorised."""
    return Matrix(left=f"{name}.A", right=f"{name}.B") if rank else Matrix(left=f"{name}.weight")


def layout(config: AdditionConfig) -> Layout:
    """Lay out the parameters of a configuration."""
    width, hidden = config.d_model, config.d_ff
    std = embedding_std(config)
    slots = [Slot(name="token_emb.weight", shape=(VOCABULARY, width), component="tokens", std=std)]
    if config.pos_rank:
        rank = config.pos_rank
        slots += [
            Slot(name="pos_emb.A", shape=(SEQUENCE, rank), component="positions", std=std),
            Slot(name="pos_emb.B", shape=(rank, width), component="positions", std=std),
        ]
    else:
        slots.append(
            Slot(name="pos_emb.weight", shape=(SEQUENCE, width), component="positions", std=std)
        )
    slots += _norm("blocks.0.ln1", config)
    qkv_slots, qkv = _qkv(config)
    slots += qkv_slots
    slots += _linear("blocks.0.attn.proj", (width, width), config.attn_out_rank, "out", config)
    slots += _norm("blocks.0.ln2", config)
    slots += _linear("blocks.0.mlp.fc1", (width, hidden), config.ffn_rank, "ffn", config)
    slots += _linear("blocks.0.mlp.fc2", (hidden, width), config.ffn_rank, "ffn", config)
    slots += _norm("ln_f", config)
    placed, start = [], 0
    for slot in slots:
        placed.append(
            Slot(
                name=slot.name,
                shape=slot.shape,
                component=slot.component,
                std=slot.std,
                fill=slot.fill,
                start=start,
            )
        )
        start += -(-slot.numel // ALIGN) * ALIGN
    return Layout(slots=tuple(placed), row=start, qkv=qkv)


def embedding_std(config: AdditionConfig) -> float:
    """Initial spread of embeddings and full matrices."""
    return 0.02 if config.init == "normal" else 1 / math.sqrt(config.d_model)


def _norm(name: str, config: AdditionConfig) -> list[Slot]:
    weight = Slot(name=f"{name}.weight", shape=(config.d_model,), component="norms", fill=1.0)
    if config.norm == "rmsnorm":
        return [weight]
    return [weight, Slot(name=f"{name}.bias", shape=(config.d_model,), component="norms")]


def _linear(
    name: str, shape: tuple[int, int], rank: int, component: str, config: AdditionConfig
) -> list[Slot]:
    num_in, num_out = shape
    if not rank:
        std = embedding_std(config)
        return [Slot(name=f"{name}.weight", shape=shape, component=component, std=std)]
    return [
        _factor(f"{name}.A", (num_in, rank), component),
        _factor(f"{name}.B", (rank, num_out), component),
    ]


def _factor(name: str, shape: tuple[int, int], component: str) -> Slot:
    return Slot(name=name, shape=shape, component=component, std=math.sqrt(2 / sum(shape)))


def _qkv(config: AdditionConfig) -> tuple[list[Slot], tuple[Matrix, ...]]:
    width, rank, tie = config.d_model, config.qkv_rank, config.tie_qkv
    base = "blocks.0.attn"
    if tie == "none":
        slots = _linear(f"{base}.qkv", (width, 3 * width), rank, "qkv", config)
        return slots, (matrix(f"{base}.qkv", rank),)
    groups = {"all": ("qkv",) * 3, "qk": ("qk", "qk", "v"), "kv": ("q", "kv", "kv")}.get(tie)
    if groups is not None:
        slots = []
        for group in dict.fromkeys(groups):
            slots += _linear(f"{base}.{group}", (width, width), rank, "qkv", config)
        return slots, tuple(matrix(f"{base}.{group}", rank) for group in groups)
    shared = "A" if tie.startswith("shareA") else "B"
    names = {"QK": ("qk", "qk", "v"), "KV": ("q", "kv", "kv")}.get(tie[-2:], ("q", "k", "v"))
    own = "B" if shared == "A" else "A"
    shapes = {"A": (width, rank), "B": (rank, width)}
    slots = [_factor(f"{base}.qkv_{shared}", shapes[shared], "qkv")]
    slots += [
        _factor(f"{base}.qkv_{own}{name}", shapes[own], "qkv") for name in dict.fromkeys(names)
    ]
    matrices = []
    for name in names:
        ends = {shared: f"{base}.qkv_{shared}", own: f"{base}.qkv_{own}{name}"}
        matrices.append(Matrix(left=ends["A"], right=ends["B"]))
    return slots, tuple(matrices)
