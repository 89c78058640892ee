"""Loss and gradient of one seed, by hand, on the 12 supervised rows only.

What makes it fast (batch 512, one CPU core, against eager autograd over all 33 positions):

* Only rows 21..32 have a loss. With one layer, the other positions matter as keys and values only.
* Keys, values and queries depend on (position, digit) alone: 330 *cells* are computed instead of
  16,896 positions, and rows are gathered. Their gradients come back as one product with one-hot
  digits per position, which is also a fixed order of summation.
* Softmax without its own passes: the largest score of a query over *all* cells is a bound for
  its scores; it rides along as one more feature of the query (its partner in the key is 1).
  The 1 also serves as one more value, so that the sum of the weights comes out of the same
  product as the weighted values. Should a bound be so far off that a sum underflows, the step
  is done again with the exact maximum: never a wrong number.
* Activations lie feature by feature, in buffers allocated once.

One seed at a time: the arithmetic of a seed does not know of its cohort, so that "in a cohort"
and "alone" are equal bit for bit by construction, and the working set stays in the cache.

Suffixes, this file: B = examples, T = 33 positions, Q = 12 supervised positions, R = B * Q rows,
C = 330 cells, N = 120 query cells, D = width, F = hidden width, V = vocabulary. A digit counts
extra features: D1 = D + 1.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from assay.engines.addition.config import SEQUENCE, VOCABULARY, AdditionConfig
from assay.engines.addition.data import EQUALS, FIRST_ROW, NUM_ROWS, PLUS, Batch
from assay.engines.addition.layout import Layout, Matrix, layout, matrix
from assay.engines.addition.norms import ColumnNorm

CELLS = 10 * SEQUENCE
QUERY_CELLS = 10 * NUM_ROWS
SMALLEST_SUM = 1e-30
"""Sums of unnormalised weights below this are computed again with the exact maximum."""


class Weights:
    """The matrices that the kernel multiplies with, made of one seed's parameters."""

    def __init__(self, config: AdditionConfig, plan: Layout, dtype: torch.dtype) -> None:
        width, hidden = config.d_model, config.d_ff
        self.plan = plan
        self.position = matrix("pos_emb", config.pos_rank)
        self.out = matrix("blocks.0.attn.proj", config.attn_out_rank)
        self.fc1 = matrix("blocks.0.mlp.fc1", config.ffn_rank)
        self.fc2 = matrix("blocks.0.mlp.fc2", config.ffn_rank)
        self.table = torch.empty(VOCABULARY + SEQUENCE, width, dtype=dtype)  # tokens, positions
        self.qkv = torch.empty(width, 3 * width, dtype=dtype)
        # The attention output with the sum of weights passed through as feature 0.
        self.out1 = torch.zeros(width + 1, width + 1, dtype=dtype)
        self.out1[0, 0] = 1.0
        self.w1 = torch.empty(width, hidden, dtype=dtype)
        self.w2 = torch.empty(hidden, width, dtype=dtype)

    def load(self, p: Mapping[str, Tensor]) -> None:
        """Read parameters, multiplying factors out."""
        self.table[:VOCABULARY] = p["token_emb.weight"]
        self.table[VOCABULARY:] = product(p, self.position)
        step = self.qkv.shape[1] // len(self.plan.qkv)
        for i, part in enumerate(self.plan.qkv):
            self.qkv[:, i * step : (i + 1) * step] = product(p, part)
        self.out1[1:, 1:] = product(p, self.out)
        self.w1.copy_(product(p, self.fc1))
        self.w2.copy_(product(p, self.fc2))


def product(p: Mapping[str, Tensor], item: Matrix) -> Tensor:
    """A matrix from its parameter, or from its two factors."""
    return p[item.left] @ p[item.right] if item.right else p[item.left]


def add_gradient(p: Mapping[str, Tensor], g: Mapping[str, Tensor], item: Matrix, d: Tensor) -> None:
    """Add the gradient `d` of a matrix to those of the parameters that it is made of."""
    if item.right:
        g[item.left].addmm_(d, p[item.right].t())
        g[item.right].addmm_(p[item.left].t(), d)
    else:
        g[item.left].add_(d)


class Kernel:
    """Buffers for one batch size, and the forward and backward passes over them.

    Not for use by two threads at once; make one a thread.
    """

    def __init__(
        self, config: AdditionConfig, num_examples: int, dtype: torch.dtype = torch.float32
    ) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=dtype)

        num, width, hidden = num_examples, config.d_model, config.d_ff
        rows = num * NUM_ROWS
        self.config, self.num, self.rows, self.width = config, num, rows, width
        self.scale = 1 / math.sqrt(width)
        self.layout = layout(config)
        self.w = Weights(config, self.layout, dtype)
        self.pick_CE = _pick(dtype)
        self.mask_QT = (
            (torch.arange(SEQUENCE)[None] <= torch.arange(NUM_ROWS)[:, None] + FIRST_ROW)
            .to(dtype)
            .contiguous()
        )
        self.norm1 = ColumnNorm(config.norm, width, CELLS, dtype)
        self.norm2 = ColumnNorm(config.norm, width, rows, dtype)
        self.norm_f = ColumnNorm(config.norm, width, rows, dtype)
        self.x_DC, self.n1_DC = empty(width, CELLS), empty(width, CELLS)
        self.qkv_C = empty(CELLS, 3 * width)
        self.bound_NC = empty(QUERY_CELLS, CELLS)
        self.query_ND1 = empty(QUERY_CELLS, width + 1)
        self.kv_C = torch.ones(CELLS, 2 * width + 1, dtype=dtype)  # key | 1 | value
        self.kv_BT = empty(num, SEQUENCE, 2 * width + 1)
        self.q_BQ = empty(num, NUM_ROWS, width + 1)
        self.p_BQT = empty(num, NUM_ROWS, SEQUENCE)
        self.mix_BQ = empty(num, NUM_ROWS, width + 1)  # sum of weights | weighted values
        self.out_D1R = empty(width + 1, rows)
        self.attn_DR, self.y_DR, self.z_DR = (
            empty(width, rows),
            empty(width, rows),
            empty(width, rows),
        )
        self.h_DR, self.hf_DR = empty(width, rows), empty(width, rows)
        self.inverse_1R = empty(1, rows)
        self.u_FR, self.g_FR = empty(hidden, rows), empty(hidden, rows)
        self.logit_VR, self.logp_VR = empty(VOCABULARY, rows), empty(VOCABULARY, rows)
        self._dtype = dtype
        self._backward_ready = False
        self._views()

    def _views(self) -> None:
        """Views of the buffers, made once: a view costs as much as a small operation."""
        width = self.width
        row = width + 1
        self.kv_rows, self.q_rows = self.kv_BT.view(-1, 2 * width + 1), self.q_BQ.view(-1, row)
        self.key_BT, self.query_BQ = self.kv_BT[:, :, :width], self.q_BQ[:, :, :width]
        self.key1_transposed = self.kv_BT[:, :, :row].transpose(1, 2)
        self.value1_BT = self.kv_BT[:, :, width:]
        self.value1_transposed = self.value1_BT.transpose(1, 2)
        self.p_transposed = self.p_BQT.transpose(1, 2)
        self.mix_R = self.mix_BQ.view(self.rows, row)
        self.mix_transposed, self.mix_values = self.mix_R.t(), self.mix_R[:, 1:]
        self.d_value_BQ = self.mix_BQ[:, :, 1:]
        self.sum_1R, self.out_DR = self.out_D1R[:1], self.out_D1R[1:]
        self.out_transposed = self.out_D1R.t()
        self.x_queries = self.x_DC[:, 10 * FIRST_ROW :]
        self.x_transposed, self.n1_transposed = self.x_DC.t(), self.n1_DC.t()
        self.pick_transposed = self.pick_CE.t()
        self.query_ND, self.bound_N = self.query_ND1[:, :width], self.query_ND1[:, width]
        self.key_C, self.value_C = self.kv_C[:, :width], self.kv_C[:, width + 1 :]
        self.key_C_transposed = self.key_C.t()
        self.qkv_query = self.qkv_C[10 * FIRST_ROW :, :width]
        self.qkv_key = self.qkv_C[:, width : 2 * width]
        self.qkv_value = self.qkv_C[:, 2 * width :]
        self.hf_transposed, self.g_transposed = self.hf_DR.t(), self.g_FR.t()

    def forward(self, p: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Log-probabilities [V, R] of the supervised rows; a buffer, valid until the next call."""
        self.w.load(p)
        self._tables(p)
        self._attend(batch)
        self._mix(batch)
        torch.add(self.attn_DR, self.y_DR, out=self.y_DR)
        w = self.w
        self.norm2.forward(self.y_DR, *_affine(p, "blocks.0.ln2"), out=self.h_DR)
        torch.mm(w.w1.t(), self.h_DR, out=self.u_FR)
        torch.ops.aten.gelu.out(self.u_FR, out=self.g_FR)
        torch.addmm(self.y_DR, w.w2.t(), self.g_FR, out=self.z_DR)
        self.norm_f.forward(self.z_DR, *_affine(p, "ln_f"), out=self.hf_DR)
        torch.mm(p["token_emb.weight"], self.hf_DR, out=self.logit_VR)
        return torch.log_softmax(self.logit_VR, 0, out=self.logp_VR)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats of the last `forward`, as a 0-d tensor."""
        return self.logp_VR.gather(0, batch.target_1R).mean().neg()

    def _tables(self, p: Mapping[str, Tensor]) -> None:
        w = self.w
        torch.mm(w.table.t(), self.pick_transposed, out=self.x_DC)
        self.norm1.forward(self.x_DC, *_affine(p, "blocks.0.ln1"), out=self.n1_DC)
        torch.mm(self.n1_transposed, w.qkv, out=self.qkv_C)
        torch.mul(self.qkv_query, self.scale, out=self.query_ND)
        self.key_C.copy_(self.qkv_key)
        self.value_C.copy_(self.qkv_value)
        torch.mm(self.query_ND, self.key_C_transposed, out=self.bound_NC)
        torch.neg(self.bound_NC.amax(1), out=self.bound_N)

    def _attend(self, batch: Batch) -> None:
        w, weight = self.w, self.p_BQT
        torch.index_select(self.kv_C, 0, batch.cell_BT, out=self.kv_rows)
        torch.index_select(self.query_ND1, 0, batch.query_R, out=self.q_rows)
        torch.bmm(self.q_BQ, self.key1_transposed, out=weight)
        weight.exp_().mul_(self.mask_QT)
        torch.bmm(weight, self.value1_BT, out=self.mix_BQ)
        torch.mm(w.out1.t(), self.mix_transposed, out=self.out_D1R)
        if float(self.sum_1R.amin()) < SMALLEST_SUM:
            self._attend_exactly()
            torch.mm(w.out1.t(), self.mix_transposed, out=self.out_D1R)

    def _attend_exactly(self) -> None:
        """Weights again, each row with its own maximum over the positions it may see."""
        score = torch.bmm(self.query_BQ, self.key_BT.transpose(1, 2))
        score.masked_fill_(self.mask_QT == 0, float("-inf"))
        torch.exp(score - score.amax(2, keepdim=True), out=self.p_BQT)
        torch.bmm(self.p_BQT, self.value1_BT, out=self.mix_BQ)

    def _mix(self, batch: Batch) -> None:
        torch.reciprocal(self.sum_1R, out=self.inverse_1R)
        torch.mul(self.out_DR, self.inverse_1R, out=self.attn_DR)
        torch.index_select(self.x_queries, 1, batch.query_R, out=self.y_DR)

    def backward(self, p: Mapping[str, Tensor], g: Mapping[str, Tensor], batch: Batch) -> None:
        """Write the gradient of the *summed* cross-entropy of the last `forward` into `g`.

        `g` must be zero on entry: tied and factorised parameters are added up.
        """
        if not self._backward_ready:
            self._allocate_backward()
        w = self.w
        d_logit = torch.exp(self.logp_VR, out=self.logit_VR)
        d_logit.scatter_add_(0, batch.target_1R, self.minus_1R)
        token = p["token_emb.weight"]
        torch.mm(d_logit, self.hf_transposed, out=g["token_emb.weight"])
        torch.mm(token.t(), d_logit, out=self.hf_DR)
        d_z = self._norm_backward(self.norm_f, "ln_f", p, g, self.hf_DR, self.z_DR)
        # The narrow matrix first: [D, R] x [R, F] takes half the time of its transpose.
        add_gradient(p, g, w.fc2, torch.mm(d_z, self.g_transposed).t())
        d_g = torch.mm(w.w2, d_z, out=self.g_FR)
        d_u = torch.ops.aten.gelu_backward.grad_input(d_g, self.u_FR, grad_input=self.du_FR)
        add_gradient(p, g, w.fc1, torch.mm(self.h_DR, self.du_transposed))
        torch.mm(w.w1, d_u, out=self.h_DR)
        d_y = self._norm_backward(self.norm2, "blocks.0.ln2", p, g, self.h_DR, self.y_DR)
        d_y.add_(d_z)
        self._attention_backward(p, g, d_y)
        self._tables_backward(p, g, d_y, batch)

    def _norm_backward(
        self,
        norm: ColumnNorm,
        name: str,
        p: Mapping[str, Tensor],
        g: Mapping[str, Tensor],
        d_out: Tensor,
        out: Tensor,
    ) -> Tensor:
        weight, bias = f"{name}.weight", f"{name}.bias"
        norm.backward(d_out, p[weight], g[weight], g.get(bias), out)
        return out

    def _attention_backward(
        self, p: Mapping[str, Tensor], g: Mapping[str, Tensor], d_y: Tensor
    ) -> None:
        """From the output of attention to keys, values and queries of every example."""
        w = self.w
        torch.mul(d_y, self.inverse_1R, out=self.out_DR)
        torch.mul(self.out_DR, self.attn_DR, out=self.attn_DR)
        torch.sum(self.attn_DR, 0, keepdim=True, out=self.sum_1R)
        self.sum_1R.neg_()
        add_gradient(p, g, w.out, torch.mm(self.out_DR, self.mix_values).t())
        torch.mm(self.out_transposed, w.out1.t(), out=self.mix_R)  # now gradients
        torch.bmm(self.p_transposed, self.d_value_BQ, out=self.dv_BT)
        d_score = torch.bmm(self.mix_BQ, self.value1_transposed, out=self.ds_BQT)
        d_score.mul_(self.p_BQT)
        torch.bmm(d_score, self.key_BT, out=self.dq_BQ)
        torch.bmm(self.ds_transposed, self.query_BQ, out=self.dk_BT)

    def _tables_backward(
        self, p: Mapping[str, Tensor], g: Mapping[str, Tensor], d_y: Tensor, batch: Batch
    ) -> None:
        """Sum the gradients of every example into the cells, and on to the embeddings."""
        width, w, hot = self.width, self.w, batch.hot_T10B
        d_qkv = self.qkv_C.view(SEQUENCE, 10, 3 * width)
        d_qkv[:FIRST_ROW, :, :width] = 0.0
        d_qkv[:, :, width : 2 * width] = torch.bmm(hot, self.dk_by_position)
        d_qkv[:, :, 2 * width :] = torch.bmm(hot, self.dv_by_position)
        d_query = torch.bmm(hot[FIRST_ROW:], self.dq_by_position)
        torch.mul(d_query, self.scale, out=d_qkv[FIRST_ROW:, :, :width])
        d_w = torch.mm(self.n1_DC, self.qkv_C)
        step = 3 * width // len(self.layout.qkv)
        for i, part in enumerate(self.layout.qkv):
            add_gradient(p, g, part, d_w[:, i * step : (i + 1) * step])
        torch.mm(w.qkv, self.qkv_C.t(), out=self.n1_DC)
        self._norm_backward(self.norm1, "blocks.0.ln1", p, g, self.n1_DC, self.x_DC)
        # A product with the identity transposes in less than half the time of a copy.
        torch.mm(d_y.t(), self.eye, out=self.dq_rows)
        d_residual = torch.bmm(hot[FIRST_ROW:], self.dq_by_position)
        self.x_queries += d_residual.view(QUERY_CELLS, width).t()
        d_table = torch.mm(self.pick_transposed, self.x_transposed)
        g["token_emb.weight"].add_(d_table[:VOCABULARY])
        add_gradient(p, g, w.position, d_table[VOCABULARY:])

    def _allocate_backward(self) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=self._dtype)

        num, width = self.num, self.width
        self.minus_1R = torch.full((1, self.rows), -1.0, dtype=self._dtype)
        self.du_FR = empty(self.config.d_ff, self.rows)
        self.ds_BQT = empty(num, NUM_ROWS, SEQUENCE)
        self.dq_BQ = empty(num, NUM_ROWS, width)
        self.dk_BT, self.dv_BT = empty(num, SEQUENCE, width), empty(num, SEQUENCE, width)
        self.eye = torch.eye(width, dtype=self._dtype)
        self.du_transposed, self.ds_transposed = self.du_FR.t(), self.ds_BQT.transpose(1, 2)
        self.dq_rows = self.dq_BQ.view(self.rows, width)
        self.dq_by_position = self.dq_BQ.transpose(0, 1)
        self.dk_by_position = self.dk_BT.transpose(0, 1)
        self.dv_by_position = self.dv_BT.transpose(0, 1)
        self._backward_ready = True


def _affine(p: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor | None]:
    return p[f"{name}.weight"], p.get(f"{name}.bias")


def _pick(dtype: torch.dtype) -> Tensor:
    """[cells, tokens + positions] of ones and zeros: which two embeddings make a cell."""
    pick = torch.zeros(CELLS, VOCABULARY + SEQUENCE, dtype=dtype)
    cell = torch.arange(CELLS)
    position, token = cell // 10, cell % 10
    token[position == 10] = PLUS
    token[position == FIRST_ROW] = EQUALS
    pick[cell, token] = 1.0
    pick[cell, VOCABULARY + position] = 1.0
    return pick
