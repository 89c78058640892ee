"""Names, shapes and initial spread of every parameter, and where each lies in a flat row.

All parameters of one seed are one row of numbers; the rows of a cohort are stacked. Rows have a
length that is a multiple of 64 numbers: vector units then never meet a remainder, whose arithmetic
may differ, and a seed's numbers do not depend on its place in the stack.

Names are those of the released checkpoints. A matrix is [in, out], a factorised one A @ B.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.prompt import format_of

ALIGN, ROW_ALIGN = 16, 64
"""Numbers between the possible starts of a parameter, and of a row."""
ATTENTION, MLP = "blocks.0.attn", "blocks.0.mlp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One parameter tensor, or a frozen buffer.

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
        fixed: Name of a frozen matrix that is added; empty for none.
    """

    left: str
    right: str = ""
    fixed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The flat rows of one seed.

    Attributes:
        slots: Parameters in order.
        frozen: Buffers that are drawn once and never trained; they have a row of their own.
        qkv: The matrices that, side by side, are [query | key | value]; tied ones repeat.
    """

    slots: tuple[Slot, ...]
    frozen: tuple[Slot, ...]
    qkv: tuple[Matrix, ...]

    @property
    def row(self) -> int:
        """Length of the row of parameters, padding included."""
        return _end(self.slots)

    @property
    def frozen_row(self) -> int:
        """Length of the row of frozen buffers, padding included."""
        return _end(self.frozen)

    def count(self) -> dict[str, int]:
        """Trained numbers by component: padding and frozen buffers left out."""
        total: dict[str, int] = {}
        for slot in self.slots:
            total[slot.component] = total.get(slot.component, 0) + slot.numel
        return total


def num_parameters(config: AdditionConfig) -> int:
    """Trained numbers after tying."""
    return sum(layout(config).count().values())


def layout(config: AdditionConfig) -> Layout:
    """Lay out the parameters of a configuration."""
    width, hidden, std = config.d_model, config.d_ff, full_std(config)
    qkv_slots, qkv = _qkv(config)
    slots = [
        *_tokens(config),
        *_positions(config),
        *_norms(config),
        *qkv_slots,
    ]
    if config.qk_norm:
        name = f"{ATTENTION}.qk_norm.weight"
        slots.append(Slot(name=name, shape=(config.width_of_head,), component="qk norm", fill=1.0))
    if config.tie_out == "none":
        inner = (config.inner_width, width)
        slots += _linear(f"{ATTENTION}.proj", inner, config.attn_out_rank, "out", std)
    slots += _bias(f"{ATTENTION}.proj", width, "out", config)
    names = ["gate", "fc1"] if config.ffn == "swiglu" else ["fc1"]
    for name in names:
        slots += _linear(f"{MLP}.{name}", (width, hidden), config.ffn_rank, "ffn", std)
        slots += _bias(f"{MLP}.{name}", hidden, "ffn", config)
    if config.tie_down == "none":
        slots += _linear(f"{MLP}.fc2", (hidden, width), config.ffn_rank, "ffn", std)
    elif config.tie_down == "rotated":
        slots.append(Slot(name=f"{MLP}.down_angle", shape=(1,), component="ffn", std=std))
    slots += _bias(f"{MLP}.fc2", width, "ffn", config)
    return Layout(slots=_place(slots), frozen=_place(_frozen(config, qkv)), qkv=qkv)


def full_std(config: AdditionConfig) -> float:
    """Initial spread of embeddings and full matrices."""
    return 0.02 if config.init == "normal" else 1 / math.sqrt(config.d_model)


def matrix(name: str, rank: int, *, fixed: bool = False) -> Matrix:
    """The matrix of a module called `name`, full or factorised."""
    if not rank:
        return Matrix(left=f"{name}.weight")
    return Matrix(left=f"{name}.A", right=f"{name}.B", fixed=f"{name}.W_fixed" if fixed else "")


def out_matrix(config: AdditionConfig) -> Matrix:
    """The attention output projection, where it is not tied."""
    return matrix(f"{ATTENTION}.proj", config.attn_out_rank, fixed=config.fixed_full_rank_attn)


def ffn_matrix(config: AdditionConfig, name: str) -> Matrix:
    """A feed-forward matrix: gate, fc1 or fc2."""
    return matrix(f"{MLP}.{name}", config.ffn_rank, fixed=config.fixed_full_rank_mlp)


def _place(slots: Iterable[Slot]) -> tuple[Slot, ...]:
    placed, start = [], 0
    for slot in slots:
        placed.append(replace(slot, start=start))
        start += -(-slot.numel // ALIGN) * ALIGN
    return tuple(placed)


def _end(slots: tuple[Slot, ...]) -> int:
    last = slots[-1].start + slots[-1].numel if slots else 0
    return -(-last // ROW_ALIGN) * ROW_ALIGN


def _tokens(config: AdditionConfig) -> list[Slot]:
    if config.embedding == "table":
        shape = (format_of(config.prompt).vocabulary, config.d_model)
        std = full_std(config)
        return [Slot(name="token_emb.weight", shape=shape, component="tokens", std=std)]
    # Digits start evenly spread over the circle of radius 1: ten numbers that are all different.
    start = {"amplitude": 1.0, "start": 0.0, "stride": 2 * math.pi / 10}
    return [
        Slot(name=f"token_emb.{name}", shape=(1,), component="tokens", fill=fill)
        for name, fill in start.items()
    ]


def _positions(config: AdditionConfig) -> list[Slot]:
    if config.positions != "learned":
        return []
    rows = config.position_rows or len(format_of(config.prompt).positions)
    std, rank, part = full_std(config), config.pos_rank, "positions"
    if not rank:
        shape = (rows, config.d_model)
        return [Slot(name="pos_emb.weight", shape=shape, component=part, std=std)]
    return [
        Slot(name="pos_emb.A", shape=(rows, rank), component=part, std=std),
        Slot(name="pos_emb.B", shape=(rank, config.d_model), component=part, std=std),
    ]


def norm_names(config: AdditionConfig) -> tuple[str, str, str]:
    """Names of the norms before attention, before the feed-forward block and before the head."""
    first, second, last = "blocks.0.ln1", "blocks.0.ln2", "ln_f"
    return {
        "none": (first, second, last),
        "block": (first, first, last),
        "all": (last, last, last),
    }[config.shared_norm]


def _norms(config: AdditionConfig) -> list[Slot]:
    slots: list[Slot] = []
    if config.norm == "none":
        return slots
    shape = (config.d_model,)
    for name in dict.fromkeys(norm_names(config)):
        slots.append(Slot(name=f"{name}.weight", shape=shape, component="norms", fill=1.0))
        if config.norm == "layernorm":
            slots.append(Slot(name=f"{name}.bias", shape=shape, component="norms"))
    return slots


def _linear(name: str, shape: tuple[int, int], rank: int, component: str, std: float) -> list[Slot]:
    num_in, num_out = shape
    if not rank:
        return [Slot(name=f"{name}.weight", shape=shape, component=component, std=std)]
    return [
        _factor(f"{name}.A", (num_in, rank), component),
        _factor(f"{name}.B", (rank, num_out), component),
    ]


def _factor(name: str, shape: tuple[int, int], component: str) -> Slot:
    return Slot(name=name, shape=shape, component=component, std=math.sqrt(2 / sum(shape)))


def _bias(name: str, width: int, component: str, config: AdditionConfig) -> list[Slot]:
    return [Slot(name=f"{name}.bias", shape=(width,), component=component)] if config.bias else []


def _qkv(config: AdditionConfig) -> tuple[list[Slot], tuple[Matrix, ...]]:
    width, inner, rank, tie = config.d_model, config.inner_width, config.qkv_rank, config.tie_qkv
    std, fixed, base = full_std(config), config.fixed_full_rank_attn, ATTENTION
    if tie == "none":
        slots = _linear(f"{base}.qkv", (width, 3 * inner), rank, "qkv", std)
        slots += _bias(f"{base}.qkv", 3 * inner, "qkv", config)
        return slots, (matrix(f"{base}.qkv", rank, fixed=fixed),)
    groups = {
        "all": ("qkv", "qkv", "qkv"),
        "qk": ("qk", "qk", "v"),
        "kv": ("q", "kv", "kv"),
        "rotated": ("q", "q", "q"),
    }.get(tie)
    if groups is not None:
        slots = []
        for group in dict.fromkeys(groups):
            slots += _linear(f"{base}.{group}", (width, inner), rank, "qkv", std)
        if tie == "rotated":
            slots.append(Slot(name=f"{base}.key_angle", shape=(1,), component="qkv", std=std))
        return slots, tuple(matrix(f"{base}.{group}", rank, fixed=fixed) for group in groups)
    shared = "A" if tie.startswith("shareA") else "B"
    names = {"QK": ("qk", "qk", "v"), "KV": ("q", "kv", "kv")}.get(tie[-2:], ("q", "k", "v"))
    own = "B" if shared == "A" else "A"
    shapes = {"A": (width, rank), "B": (rank, inner)}
    slots = [_factor(f"{base}.qkv_{shared}", shapes[shared], "qkv")]
    slots += [
        _factor(f"{base}.qkv_{own}{name}", shapes[own], "qkv") for name in dict.fromkeys(names)
    ]
    matrices = []
    for name in names:
        ends = {shared: f"{base}.qkv_{shared}", own: f"{base}.qkv_{own}{name}"}
        buffer = f"{base}.qkv_{name}.W_fixed" if fixed else ""
        matrices.append(Matrix(left=ends["A"], right=ends["B"], fixed=buffer))
    return slots, tuple(matrices)


def _frozen(config: AdditionConfig, qkv: tuple[Matrix, ...]) -> list[Slot]:
    """Frozen buffers: unlike the trained factors, they have the spread of a full matrix."""
    width, inner, hidden = config.d_model, config.inner_width, config.d_ff
    wanted = {m.fixed: (width, 3 * inner // len(qkv)) for m in qkv}
    if config.tie_out == "none":
        wanted[out_matrix(config).fixed] = (inner, width)
    for name in ["gate", "fc1"] if config.ffn == "swiglu" else ["fc1"]:
        wanted[ffn_matrix(config, name).fixed] = (width, hidden)
    if config.tie_down == "none":
        wanted[ffn_matrix(config, "fc2").fixed] = (hidden, width)
    std = full_std(config)
    return [
        Slot(name=name, shape=shape, component="frozen", std=std)
        for name, shape in wanted.items()
        if name
    ]
