"""Small models, texts and runs for the tests of the concepts engine."""

import numpy as np
import torch
from transformers import set_seed

from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.models import ConceptForMaskedLM

SMALL = {
    "vocab_size": 300,
    "concept_num": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "mask_token_id": 3,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
TEXTS = tuple(
    f"The {size} {animal} of {place} eats {food} at {hour} o'clock, and sleeps afterwards."
    for size in ("big", "small", "old", "young")
    for animal in ("dog", "cat", "horse")
    for place in ("Paris", "Rome", "Oslo", "Bern")
    for food in ("meat", "hay", "bread")
    for hour in ("one", "two")
)


def model_with(seed=0, **settings):
    """A small model with first weights from a seed, without dropout."""
    set_seed(seed)
    return ConceptForMaskedLM(ConceptConfig(**SMALL | settings)).eval()


def batch(seed=0, texts=3, tokens=20):
    """Ids, a mask that leaves out the end of the second text, and labels of a third of the tokens."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 300, (texts, tokens), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, tokens * 2 // 3 :] = 0
    ids[mask == 0] = 0
    asked = (torch.rand(ids.shape, generator=draw) < 0.3) & mask.bool()
    return ids, mask, ids.masked_fill(~asked, -100)


class Context:
    """A run that keeps all in memory, and can be asked to stop after a step."""

    def __init__(self, seed=0, data_dir=None, stop_after=None, checkpoint=None):
        self.seeds = {"init": seed, "data": seed + 100}
        self.device, self.threads, self.data_dir = "cpu", 1, data_dir
        self.rows, self.final, self.files = {}, {}, {}
        self.stop_after, self.checkpoint = stop_after, checkpoint

    def log(self, values, *, step):
        self.rows.setdefault(step, {}).update(values)

    def summary(self, values):
        self.final |= values

    def save(self, name, content):
        self.files[name] = content
        return ""

    def save_checkpoint(self, step, content):
        self.checkpoint = (step, content)

    def load_checkpoint(self):
        return self.checkpoint

    def event(self, kind, message, **details):
        pass

    def spent(self, **budget):
        self.final |= {f"spent/{name}": value for name, value in budget.items()}

    def progress(self, step, total, shown):
        pass

    def should_stop(self):
        return self.stop_after is not None and len(self.rows) >= self.stop_after


def rows_of(lengths):
    """Blocks of ids 4, 5, 6 …, of some lengths, [CLS] and [SEP] around."""
    return [np.array([1, *range(4, 2 + n), 2], np.int32) for n in lengths]
