"""The leaderboard's protocol: a self-contained submission, and its verification.

A submission offers `build_model()` and `add(model, a, b)`. It is judged on 10 edge cases and 10,000
pairs of `random.Random(2025)`, one at a time, and passes from 99 % on.
"""

import pprint
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from assay.engines.addition import submission
from assay.engines.addition.checkpoint import Model
from assay.engines.addition.data import LIMIT
from assay.engines.addition.layout import norm_names
from assay.engines.addition.prompt import format_of

EDGE_CASES = (
    (0, 0),
    (0, 1),
    (LIMIT - 1, 0),
    (LIMIT - 1, 1),
    (LIMIT - 1, LIMIT - 1),
    (5_555_555_555, 5_555_555_555),
    (1_234_567_890, 9_876_543_210),
    (1_111_111_111, 8_888_888_889),
    (9_999_999_990, 10),
    (5_000_000_000, 5_000_000_000),
)
"""Ours: nothing, one digit, the longest carries, carries at one end. The board's own ten decide."""
NUM_RANDOM, RANDOM_SEED, PASS_RATE = 10_000, 2025, 0.99
_USED = ("d_model", "heads", "embedding", "positions", "rope_theta", "tie_qkv", "tie_out", "qk_norm",
         "ffn", "tie_down", "norm")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a submission does on the protocol.

    Attributes:
        cases: Pairs tried.
        failures: (a, b, answer) of the wrong ones.
        edge_failures: How many of them are edge cases.
        parameters: Trained numbers counted in unique storage; None for a module that is no
            `torch.nn.Module`.
    """

    cases: int
    failures: tuple[tuple[int, int, int], ...]
    edge_failures: int
    parameters: int | None

    @property
    def accuracy(self) -> float:
        """Share of right sums."""
        return 1 - len(self.failures) / self.cases

    @property
    def passes(self) -> bool:
        """Whether it reaches the board's bar."""
        return self.accuracy >= PASS_RATE


def cases() -> Iterator[tuple[int, int]]:
    """All pairs of the protocol, edge cases first."""
    yield from EDGE_CASES
    draw = random.Random(RANDOM_SEED)
    for _ in range(NUM_RANDOM):
        yield draw.randint(0, LIMIT - 1), draw.randint(0, LIMIT - 1)


def verify(module: ModuleType, progress: Callable[[int], None] = lambda done: None) -> Verification:
    """Judge a submission by its public interface, pair by pair."""
    built = module.build_model()
    model = built[0] if isinstance(built, tuple) else built
    failures, edge = [], 0
    total = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one pair at a time is far too small for a second thread
    try:
        for total, (a, b) in enumerate(cases(), 1):
            answer = module.add(model, a, b)
            if answer != a + b:
                failures.append((a, b, answer))
                edge += total <= len(EDGE_CASES)
            progress(total)
    finally:
        torch.set_num_threads(threads)
    return Verification(
        cases=total, failures=tuple(failures), edge_failures=edge, parameters=strict_count(model)
    )


def strict_count(model: Any) -> int | None:
    """Trained numbers of a module: each element of each storage once."""
    if not hasattr(model, "parameters"):
        return None
    seen = {
        (tensor.untyped_storage().data_ptr(), tensor.storage_offset()): tensor.numel()
        for tensor in model.parameters()
    }
    return sum(seen.values())


def source(model: Model) -> str:
    """A checkpoint as a self-contained submission file."""
    config, form = model.config, format_of(model.config.prompt)
    named = {name: view[0] for name, view in model.parameters.named().items()}
    trained = [slot.name for slot in model.parameters.layout.slots]
    frozen = [slot.name for slot in model.parameters.layout.frozen]
    settings: dict[str, Any] = {name: getattr(config, name) for name in _USED}
    settings["norm_names"] = list(norm_names(config))
    settings["prompt_positions"] = [
        [int(p.kind), p.place, p.first] for p in form.positions[: form.prompt_length]
    ]
    text = Path(submission.__file__).read_text()
    filled = {
        "CONFIG": settings,
        "WEIGHTS": {name: named[name].tolist() for name in trained},
        "FROZEN": {name: named[name].tolist() for name in frozen},
    }
    for name, value in filled.items():
        head, marker, tail = text.partition(f"{name}: dict[str, Any] = {{}}")
        assert marker, name
        literal = pprint.pformat(value, width=100, compact=True, sort_dicts=False)
        text = f"{head}{name}: dict[str, Any] = {literal}{tail}"
    return text.replace("  # filled by the exporter", "")


def module_of(text: str, name: str = "submission") -> ModuleType:
    """The module of a submission's text. This runs it: give only text that you trust."""
    module = ModuleType(name)
    exec(compile(text, f"{name}.py", "exec"), module.__dict__)
    return module
