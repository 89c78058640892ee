"""What an encoder costs: seconds of forward and backward of one text, by its length."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertModel, set_seed

from assay.core.engine import RunContext
from assay.engines import memory
from assay.engines.concepts.config import CostConfig
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.models import ConceptModel
from assay.engines.concepts.modes import threads

VOCABULARY = 4096


def measure(configs: Sequence[CostConfig], contexts: Sequence[RunContext]) -> None:
    """Time runs one after another."""
    memory.keep()
    for config, context in zip(configs, contexts, strict=True):
        with threads(context.threads):
            set_seed(context.seeds["init"])  # of first weights, which the library draws globally
            measured = timed(config)
        context.summary(
            {
                "cost/seconds": statistics.median(measured),
                "cost/seconds_min": min(measured),
                "model/parameters": float(encoder(config).num_parameters()),
            }
        )
        context.spent(repeats=config.repeats)


def timed(config: CostConfig) -> list[float]:
    """Seconds of each repeat, after one that is not counted."""
    model, ids = encoder(config).train(), text(config.tokens)
    return [seconds(model, ids) for _ in range(config.repeats + 1)][1:]


def text(tokens: int) -> Tensor:
    """A text of so many tokens, drawn from the global generator, [1, N]."""
    return torch.randint(4, VOCABULARY, (1, tokens))


def seconds(model: Any, ids_1N: Tensor) -> float:
    """Of forward and backward of one text."""
    model.zero_grad()
    began = time.perf_counter()
    model(ids_1N).last_hidden_state.square().mean().backward()
    return time.perf_counter() - began


def encoder(config: CostConfig) -> Any:
    """Without a head and without dropout; a plain Transformer has as many layers of the same width."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.inner,
        "num_attention_heads": max(1, config.hidden // 64),
        "max_position_embeddings": config.tokens,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if config.encoder == "transformer":
        return BertModel(BertConfig(**common), add_pooling_layer=False)
    two_ways = config.encoder == "bidirectional"
    return ConceptModel(ConceptConfig(concept_num=config.slots, bidirectional=two_ways, **common))
