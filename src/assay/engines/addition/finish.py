"""Finishing stages: what turns a model that adds nearly always into one that does always.

Each starts from the best weights of a run and may only improve them: what it proposes is judged
on the validation pairs and kept if it is better there. Test pairs are never seen. A stage draws
its examples from the run's own stream, from where training ended, and its own generators, so it
is repeatable; a run that was interrupted within a stage does its stages again.

Suffixes, this file: S = candidates stacked as seeds, P = numbers of a flat row, B = examples.
"""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.engines.addition.backend import Backend
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.data import BLOCK_STEPS, Pairs
from assay.engines.addition.evaluate import score
from assay.engines.addition.model import Parameters
from assay.engines.addition.optim import AdamW
from assay.engines.addition.state import Run

FIXED_BATCHES = 32
"""Batches that make the fixed set of examples of L-BFGS."""
SEARCHED_BLOCKS = 8
"""Blocks of training examples that are searched for errors, before each round of hard negatives."""
HARD_ROUND = 200
"""Updates on the errors of one search."""
POPULATION = 24
EVALUATED_PAIRS = 4096
"""Pairs on which a generation of CMA-ES is compared."""


class Finisher:
    """The finishing stages of one run."""

    def __init__(self, run: Run, best: Parameters, backend: Backend) -> None:
        """Start from a stack of one: the best weights, replaced in place by better ones."""
        self.run, self.best, self.backend = run, best, backend
        self.config: AdditionConfig = run.config
        self._block = -(-self.config.steps // BLOCK_STEPS)

    def work(self) -> int:
        """Go through the stages; returns how many gradients or evaluations of a batch they took."""
        spent, rate = 0, self.config.finish_lr
        for stage in self.config.finish:
            before = self.run.best_val
            if stage == "low-lr":
                used = self._descend(rate, hard=False)
                rate /= 3
            elif stage == "hard-negatives":
                used = self._descend(rate, hard=True)
            elif stage == "lbfgs":
                used = self._lbfgs()
            else:
                used = self._cma_es()
            spent += used
            self.run.context.event(
                "finish",
                f"{stage}: validation exact match {before} before, {self.run.best_val} after",
                batches=used,
            )
        return spent

    def _offer(self, candidate: Parameters) -> None:
        """Judge weights on the validation pairs; keep them if they are better."""
        if not bool(torch.isfinite(candidate.rows_SP).all()):
            return
        if self.run.judge(score(candidate, 0, self.run.held.val, self.backend)):
            self.best.rows_SP.copy_(candidate.rows_SP)

    def _next_block(self) -> tuple[Tensor, Tensor]:
        """The next block of the run's own training stream: operands [K, B]."""
        a_KB, b_KB = self.run.sampler.block(self._block)
        self._block += 1
        return torch.from_numpy(a_KB), torch.from_numpy(b_KB)

    def _descend(self, rate: float, *, hard: bool) -> int:
        """AdamW with a fresh state, no decay and a cosine from `rate` to a tenth of it.

        With `hard`, half of each batch are pairs that the weights got wrong when last searched.
        """
        steps = self.config.finish_steps
        schedule = replace(
            self.config, lr=rate, weight_decay=0.0, warmup_steps=0, min_lr_ratio=0.1, steps=steps
        )
        current = self.best.select([0])
        optimizer = AdamW(current.rows_SP, [schedule])
        generator = np.random.Generator(np.random.Philox(key=self.run.context.seeds["data"]))
        errors: Pairs | None = None
        searched = 0
        for step in range(steps):
            if hard and step % HARD_ROUND == 0:
                errors = self._errors(current)
                searched += SEARCHED_BLOCKS * BLOCK_STEPS
                if not len(errors):
                    break
            if step % BLOCK_STEPS == 0:
                a_KB, b_KB = self._next_block()
            a_B, b_B = a_KB[step % BLOCK_STEPS].clone(), b_KB[step % BLOCK_STEPS].clone()
            if errors is not None:
                chosen = generator.integers(0, len(errors), size=len(a_B) // 2)
                a_B[: len(chosen)], b_B[: len(chosen)] = errors.a[chosen], errors.b[chosen]
            _, grad_SP = self.backend.gradient(current, a_B[None], b_B[None])
            optimizer.step(grad_SP, step=step)
            if (step + 1) % min(self.config.eval_interval, HARD_ROUND) == 0 or step + 1 == steps:
                self._offer(current)
        return steps + searched

    def _errors(self, parameters: Parameters) -> Pairs:
        """Training pairs of the next blocks that the weights add wrong."""
        blocks = [self._next_block() for _ in range(SEARCHED_BLOCKS)]
        a_N, b_N = (
            torch.cat([block.flatten() for block in side]) for side in zip(*blocks, strict=True)
        )
        wrong = self.backend.judge(parameters, 0, Pairs(a=a_N, b=b_N)).wrong_N != 0
        return Pairs(a=a_N[wrong], b=b_N[wrong])

    def _fixed(self, batches: int) -> tuple[Tensor, Tensor]:
        """Examples [1, N] of the training stream that stay the same for a whole stage."""
        blocks = [self._next_block() for _ in range(-(-batches // BLOCK_STEPS))]
        a_NB, b_NB = (torch.cat(side)[:batches] for side in zip(*blocks, strict=True))
        return a_NB.reshape(1, -1), b_NB.reshape(1, -1)

    def _lbfgs(self) -> int:
        """L-BFGS with strong Wolfe line search on fixed examples (torch's)."""
        a_1N, b_1N = self._fixed(FIXED_BATCHES)
        current = self.best.select([0])
        row_1P = current.rows_SP.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [row_1P],
            max_iter=self.config.finish_steps,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
        )
        calls = 0

        def closure() -> Tensor:
            nonlocal calls
            calls += 1
            plain = Parameters(current.config, row_1P.detach(), current.frozen_SP)
            loss_1, row_1P.grad = self.backend.gradient(plain, a_1N, b_1N)
            return loss_1[0]

        optimizer.step(closure)
        self._offer(Parameters(current.config, row_1P.detach(), current.frozen_SP))
        return calls * FIXED_BATCHES

    def _cma_es(self) -> int:
        """CMA-ES (Hansen 2016, arXiv:1604.00772; pycma) on the parameters, by errors and loss."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycma warns about optional packages on import
            import cma  # noqa: PLC0415  (slow to import, and only this stage needs it)
        batches = -(-EVALUATED_PAIRS // self.config.batch_size)
        a_1N, b_1N = self._fixed(batches)
        pairs = Pairs(a=a_1N[0], b=b_1N[0])
        generator = np.random.Generator(np.random.Philox(key=self.run.context.seeds["init"]))
        used = [
            index
            for slot in self.best.layout.slots
            for index in range(slot.start, slot.start + slot.numel)
        ]
        options: dict[str, Any] = {
            "popsize": POPULATION,
            "randn": lambda *shape: generator.standard_normal(shape),
            "seed": np.nan,  # leaves numpy's global generator alone
            "verbose": -9,
        }
        start = self.best.rows_SP[0, used].double().numpy()
        strategy = cma.CMAEvolutionStrategy(start, self.config.finish_sigma, options)
        candidates = self.best.select([0] * POPULATION)
        for _ in range(self.config.finish_steps):
            proposed = strategy.ask()
            candidates.rows_SP[:, used] = torch.from_numpy(np.stack(proposed)).to(torch.float32)
            strategy.tell(proposed, [self._cost(candidates, i, pairs) for i in range(POPULATION)])
        current = self.best.select([0])
        current.rows_SP[0, used] = torch.from_numpy(strategy.mean).to(torch.float32)
        self._offer(current)
        return self.config.finish_steps * POPULATION * batches

    def _cost(self, candidates: Parameters, index: int, pairs: Pairs) -> float:
        """Errors, and the mean loss to tell equals apart."""
        found = score(candidates, index, pairs, self.backend)
        cost = found.errors + found.loss_nats
        return cost if np.isfinite(cost) else 1e12
