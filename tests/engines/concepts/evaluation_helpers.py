"""Labelled tasks of a few made-up texts, and models that are tiny."""

from types import MappingProxyType

import numpy as np
import polars as pl
import torch
from transformers import BertConfig, BertForMaskedLM

from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.models import ConceptForMaskedLM
from assay.engines.concepts.parts import Examples, Parts
from assay.engines.concepts.tasks import TASKS
from assay.engines.concepts.tokens import train_tokenizer

NAMES = [
    "anna",
    "ben",
    "carla",
    "dan",
    "eva",
    "finn",
    "gina",
    "hugo",
    "ida",
    "jan",
    "kim",
    "lea",
    "max",
    "nora",
    "otto",
    "paul",
]
DEEDS = ["sings", "walks", "reads", "waits", "draws", "cooks"]
PLACES = ["here", "there", "inside", "outside"]
TEXTS = [f"{name} {deed} {place}" for place in PLACES for deed in DEEDS for name in NAMES]
FAST = {"lr": 0.003, "batch": 16, "warmup": 0.0, "max_length": 24}


def write(folder, part, **columns):
    """A Parquet file of a part."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}-00000-of-00001.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


def labels_of(task, number):
    """As many answers, all kinds among them."""
    if task.is_regression:
        return [task.low + (task.high - task.low) * (i % 11) / 10 for i in range(number)]
    return [i % task.classes for i in range(number)]


def write_task(root, task, number=40, names=0):
    """All parts of a task, no text twice; columns by their first or another name."""
    parts = ["train", *dict.fromkeys(task.reported.values())]
    for at, part in enumerate(parts):
        texts = TEXTS[at * number : (at + 1) * number]
        columns = {options[min(names, len(options) - 1)]: texts for options in task.columns[:1]}
        if task.is_pair:
            options = task.columns[1]
            columns[options[min(names, len(options) - 1)]] = [f"{text} too" for text in texts]
        write(root / task.folder, part, **columns, **{task.label: labels_of(task, number)})


def sentiment(number, seed, share=0.5):
    """Texts whose class is whether "good" or "bad" stands in them; `share` of them good."""
    rng = np.random.default_rng(seed)
    labels = (rng.permutation(number) < share * number).astype(np.int64)
    texts = [f"{rng.choice(TEXTS)} {'good' if y else 'bad'} {rng.choice(NAMES)}" for y in labels]
    return Examples(tuple(texts), None, labels)


def related(number, seed):
    """Pairs whose number is how many of four words the second has of the first, 0 to 4, plus 1."""
    rng = np.random.default_rng(seed)
    words = np.array(NAMES + DEEDS)
    first, second, labels = [], [], []
    for _ in range(number):
        own = rng.permutation(len(words))
        same = int(rng.integers(5))
        first.append(" ".join(words[own[:4]]))
        second.append(" ".join(words[[*own[:same], *own[4 : 8 - same]]]))
        labels.append(1.0 + same)
    return Examples(tuple(first), tuple(second), np.array(labels))


def parts_of(name, train, chosen, reported):
    """A task's parts as they are given."""
    return Parts(
        task=TASKS[name],
        train=train,
        chosen=chosen,
        reported=MappingProxyType({"": reported}),
        told={"chosen": "made up", "reported": "made up"},
        overlap={"reported_in_train": 0, "reported_texts_in_train": 0},
        digest="0" * 64,
    )


def tokenizer():
    """Of the made-up texts."""
    return train_tokenizer([*TEXTS, "good bad too"], 360)


def concept_config(**changes):
    """A tiny concept model's settings."""
    sizes = {
        "vocab_size": len(tokenizer()), "concept_num": 4, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return ConceptConfig(**(sizes | changes))


def checkpoint(folder, **changes):
    """A stored concept model of first weights, with its tokenizer."""
    torch.manual_seed(77)
    ConceptForMaskedLM(concept_config(**changes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def bert_checkpoint(folder):
    """A stored BERT of first weights, with its tokenizer."""
    config = BertConfig(
        vocab_size=len(tokenizer()), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(77)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)
