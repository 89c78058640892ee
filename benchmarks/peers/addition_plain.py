"""A plain trainer of the same transformer, as the public trainers do it: the benchmark's peer.

One model, `nn.Module`s, all 33 positions of every example, autograd, `torch.optim.AdamW`,
`clip_grad_norm_`. It shares no code with the engine. Operands are drawn as whole tensors (the
public trainers' Python-loop sampler would only make the peer slower).
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SEQUENCE = 33
IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainConfig:
    """Shape of the peer; ranks of 0 mean full matrices."""

    d_model: int = 8
    d_ff: int = 28
    pos_rank: int = 0
    qkv_rank: int = 0
    attn_out_rank: int = 0
    ffn_rank: int = 0
    rms: bool = False
    share_a_tie_kv: bool = False
    batch_size: int = 512
    lr: float = 0.015
    weight_decay: float = 0.01
    grad_clip: float = 1.0


class LowRank(nn.Module):
    """`x @ A @ B`."""

    def __init__(self, num_in: int, num_out: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(num_in, rank) * math.sqrt(2 / (num_in + rank)))
        self.B = nn.Parameter(torch.randn(rank, num_out) * math.sqrt(2 / (rank + num_out)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.A @ self.B


class RMSNorm(nn.Module):
    """Root-mean-square norm, as the 456-parameter model has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-8) * self.weight


def linear(num_in: int, num_out: int, rank: int) -> nn.Module:
    return LowRank(num_in, num_out, rank) if rank else nn.Linear(num_in, num_out, bias=False)


class Attention(nn.Module):
    """One causal head with a full score matrix."""

    def __init__(self, c: PlainConfig) -> None:
        super().__init__()
        self.tied = c.share_a_tie_kv
        if self.tied:
            self.q = LowRank(c.d_model, c.d_model, c.qkv_rank)
            self.kv = nn.Parameter(torch.randn(c.qkv_rank, c.d_model) * 0.3)
        else:
            self.qkv = linear(c.d_model, 3 * c.d_model, c.qkv_rank)
        self.proj = linear(c.d_model, c.d_model, c.attn_out_rank)
        self.register_buffer("mask", torch.tril(torch.ones(SEQUENCE, SEQUENCE)).bool())

    def forward(self, x: Tensor) -> Tensor:
        if self.tied:
            shared = x @ self.q.A
            q, k = shared @ self.q.B, shared @ self.kv
            v = k
        else:
            q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~self.mask, float("-inf"))
        return self.proj(scores.softmax(-1) @ v)


class Plain(nn.Module):
    """Token and position embeddings, one block, tied head."""

    def __init__(self, c: PlainConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(14, c.d_model)
        nn.init.normal_(self.token.weight, std=0.02)
        self.rank = c.pos_rank
        if c.pos_rank:
            self.pos_a = nn.Parameter(torch.randn(SEQUENCE, c.pos_rank) * 0.02)
            self.pos_b = nn.Parameter(torch.randn(c.pos_rank, c.d_model) * 0.02)
        else:
            self.pos = nn.Parameter(torch.randn(SEQUENCE, c.d_model) * 0.02)
        norm = RMSNorm if c.rms else nn.LayerNorm
        self.ln1, self.ln2, self.ln_f = norm(c.d_model), norm(c.d_model), norm(c.d_model)
        self.attn = Attention(c)
        self.fc1 = linear(c.d_model, c.d_ff, c.ffn_rank)
        self.fc2 = linear(c.d_ff, c.d_model, c.ffn_rank)

    def forward(self, token: Tensor) -> Tensor:
        position = self.pos_a @ self.pos_b if self.rank else self.pos
        x = self.token(token) + position
        x = x + self.attn(self.ln1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.ln2(x))))
        return self.ln_f(x) @ self.token.weight.t()


def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one batch of the last curriculum phase."""
    power = 10 ** torch.arange(11)
    n = torch.randint(1, 11, (batch, 1), generator=generator)
    pair = torch.randint(0, 10**10, (batch, 2), generator=generator) % 10**n
    total = pair.sum(1, keepdim=True)
    digits = pair[:, :, None] // power[:10].flip(0) % 10
    sequence = torch.cat(
        [
            digits[:, 0],
            torch.full((batch, 1), 10),
            digits[:, 1],
            torch.full((batch, 1), 11),
            total // power % 10,
            torch.full((batch, 1), 13),
        ],
        dim=1,
    )
    target = sequence[:, 1:].clone()
    target[:, :21] = IGNORED
    return sequence[:, :33], target


class Trainer:
    """Model, optimizer and sampler; `step()` is one training step."""

    def __init__(self, config: PlainConfig, *, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(seed)
            self.model = Plain(config)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )

    def step(self) -> Tensor:
        token, target = draw(self.config.batch_size, self.generator)
        logits = self.model(token)
        loss = F.cross_entropy(logits.view(-1, 14), target.reshape(-1), ignore_index=IGNORED)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return loss.detach()


def seconds_per_step(trainer: Trainer, num_steps: int) -> float:
    """Mean wall-clock seconds of one step."""
    start = time.perf_counter()
    for _ in range(num_steps):
        trainer.step()
    return (time.perf_counter() - start) / num_steps
