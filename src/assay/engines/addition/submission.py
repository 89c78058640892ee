"""A ten-digit adder, self-contained: PyTorch and the trained numbers below, nothing else.

`build_model()` returns the model and what it is; `add(model, a, b)` decodes greedily, feeding each
token back. The forward pass is a standard one, tokens in, logits out. Written by Assay.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG: dict[str, Any] = {}  # filled by the exporter
WEIGHTS: dict[str, Any] = {}
FROZEN: dict[str, Any] = {}


class Adder(nn.Module):
    """A one-layer decoder; every trained number is one element of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterDict(
            {key(n): nn.Parameter(torch.tensor(v)) for n, v in WEIGHTS.items()}
        )
        for name, values in FROZEN.items():
            self.register_buffer(key(name), torch.tensor(values))

    def get(self, name: str) -> Tensor:
        """A parameter or a frozen buffer."""
        found = self.w[key(name)] if name in WEIGHTS else getattr(self, key(name))
        assert isinstance(found, Tensor)
        return found

    def matrix(self, name: str) -> Tensor:
        """A full matrix, or the product of its factors and its frozen term."""
        if f"{name}.weight" in WEIGHTS:
            return self.get(f"{name}.weight")
        made = self.get(f"{name}.A") @ self.get(f"{name}.B")
        return made + self.get(f"{name}.W_fixed") if f"{name}.W_fixed" in FROZEN else made

    def projections(self) -> list[Tensor]:
        """The query, key and value matrices, ties undone."""
        base, tie = "blocks.0.attn", CONFIG["tie_qkv"]
        if tie == "none":
            return list(self.matrix(f"{base}.qkv").chunk(3, 1))
        if tie == "rotated":
            query = self.matrix(f"{base}.q")
            return [query, turn(query, self.get(f"{base}.key_angle")), query]
        groups = {"all": ["qkv"] * 3, "qk": ["qk", "qk", "v"], "kv": ["q", "kv", "kv"]}
        if tie in groups:
            return [self.matrix(f"{base}.{name}") for name in groups[tie]]
        names = {"QK": ["qk", "qk", "v"], "KV": ["q", "kv", "kv"]}.get(tie[-2:], ["q", "k", "v"])
        made = []
        for name in names:
            ends = (
                ("qkv_A", f"qkv_B{name}") if tie.startswith("shareA") else (f"qkv_A{name}", "qkv_B")
            )
            product = self.get(f"{base}.{ends[0]}") @ self.get(f"{base}.{ends[1]}")
            fixed = f"{base}.qkv_{name}.W_fixed"
            made.append(product + self.get(fixed) if fixed in FROZEN else product)
        return made

    def norm(self, place: int, x: Tensor) -> Tensor:
        """The norm before attention (0), before the feed-forward block (1), before the head (2)."""
        if CONFIG["norm"] == "none":
            return x
        weight = self.get(f"{CONFIG['norm_names'][place]}.weight")
        if CONFIG["norm"] == "layernorm":
            bias = self.get(f"{CONFIG['norm_names'][place]}.bias")
            return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-8) * weight

    def tokens(self) -> Tensor:
        """Token vectors, which are the output head too."""
        if CONFIG["embedding"] == "table":
            return self.get("token_emb.weight")
        angle = self.get("token_emb.start") + torch.arange(10) * self.get("token_emb.stride")
        arc = self.get("token_emb.amplitude") * torch.stack((angle.cos(), angle.sin()), -1)
        return F.pad(arc, (0, CONFIG["d_model"] - 2))

    def add_positions(self, x: Tensor) -> Tensor:
        """Learned, sinusoidal, or no positions."""
        length = x.shape[-2]
        if CONFIG["positions"] == "learned":
            return x + self.matrix("pos_emb")[:length]
        if CONFIG["positions"] == "sinusoidal":
            index = torch.arange(CONFIG["d_model"], dtype=torch.float64)
            speed = 10_000.0 ** (-(index - index % 2) / CONFIG["d_model"])
            angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
            return x + torch.where(index % 2 == 0, angle.sin(), angle.cos()).float()
        return x

    def heads(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Project and split: [batch, heads, length, width]."""
        made = x @ weight if bias is None else x @ weight + bias
        return made.unflatten(-1, (CONFIG["heads"], -1)).transpose(1, 2)

    def bias(self, name: str) -> Tensor | float:
        """A bias, or 0."""
        return self.get(f"{name}.bias") if f"{name}.bias" in WEIGHTS else 0.0

    def attention(self, x: Tensor) -> Tensor:
        """Causal self-attention."""
        matrices = self.projections()
        biases: list[Tensor | None] = [None] * 3
        if "blocks.0.attn.qkv.bias" in WEIGHTS:
            biases = list(self.get("blocks.0.attn.qkv.bias").chunk(3))
        q, k, v = (self.heads(x, *pair) for pair in zip(matrices, biases, strict=True))
        if CONFIG["qk_norm"]:
            weight = self.get("blocks.0.attn.qk_norm.weight")
            q, k = (
                t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-8) * weight for t in (q, k)
            )
        if CONFIG["rope_theta"]:
            q, k = rotary(q), rotary(k)
        score = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        future = torch.ones(score.shape[-2:], dtype=torch.bool).triu(1)
        mixed = score.masked_fill(future, float("-inf")).softmax(-1) @ v
        tied = CONFIG["tie_out"] == "query"
        out = matrices[0].t() if tied else self.matrix("blocks.0.attn.proj")
        return mixed.transpose(1, 2).flatten(-2) @ out + self.bias("blocks.0.attn.proj")

    def feed_forward(self, x: Tensor) -> Tensor:
        """GELU or SwiGLU."""
        base = "blocks.0.mlp"
        up = self.matrix(f"{base}.fc1")
        h = x @ up + self.bias(f"{base}.fc1")
        if CONFIG["ffn"] == "swiglu":
            h = F.silu(x @ self.matrix(f"{base}.gate") + self.bias(f"{base}.gate")) * h
        else:
            h = F.gelu(h)
        if CONFIG["tie_down"] == "none":
            down = self.matrix(f"{base}.fc2")
        else:
            rotated = CONFIG["tie_down"] == "rotated"
            down = (turn(up, self.get(f"{base}.down_angle")) if rotated else up).t()
        return h @ down + self.bias(f"{base}.fc2")

    def forward(self, token: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary] of tokens [batch, length]."""
        table = self.tokens()
        x = self.add_positions(table[token])
        x = x + self.attention(self.norm(0, x))
        x = x + self.feed_forward(self.norm(1, x))
        return self.norm(2, x) @ table.t()


def key(name: str) -> str:
    """Modules do not allow dots in names."""
    return name.replace(".", "__")


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Turn neighbouring columns by one angle."""
    even, odd = x[:, 0::2], x[:, 1::2]
    pair = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
    return torch.stack(pair, -1).flatten(-2)


def rotary(x: Tensor) -> Tensor:
    """Rotary position embedding of [batch, heads, length, width]."""
    length, width = x.shape[-2:]
    speed = CONFIG["rope_theta"] ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def build_model() -> tuple[Adder, dict[str, Any]]:
    """The model, and what it is; its parameters are counted, not stated."""
    model = Adder().eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    return model, {"name": f"{count}-parameter adder", "params": count, "config": CONFIG}


def prompt(a: int, b: int) -> list[int]:
    """Tokens before the first digit of the sum."""
    digit = {1: [int(d) for d in f"{a:010d}"[::-1]], 2: [int(d) for d in f"{b:010d}"[::-1]]}
    made = []
    for kind, place, first in CONFIG["prompt_positions"]:
        if kind == 0:
            made.append(first)
        elif kind == 4:
            made.append(first + 10 * digit[1][place] + digit[2][place])
        else:
            made.append(first + digit[kind][place])
    return made


def add(model: nn.Module, a: int, b: int) -> int:
    """Greedy decoding: eleven digits, units first, up to the first token that is no digit."""
    if not (0 <= a < 10**10 and 0 <= b < 10**10):
        raise ValueError(f"operands must be whole numbers from 0 to 9999999999; got {a} and {b}")
    token = prompt(a, b)
    total = 0
    with torch.no_grad():
        for place in range(11):
            chosen = int(model(torch.tensor([token]))[0, -1].argmax())
            if chosen >= 10:
                break
            total += chosen * 10**place
            token.append(chosen)
    return total
