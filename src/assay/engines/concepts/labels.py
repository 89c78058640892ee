"""What is measured on labelled tasks at the end of a run: names and meanings. No torch here."""

from collections.abc import Mapping

from assay.core.engine import Metric
from assay.engines.concepts.tasks import TASKS, Task

SAYS = {
    "accuracy": "Share of right answers",
    "f1": "F1 of the answer yes",
    "mcc": "Matthews' correlation",
    "pearson": "Pearson's correlation with people's numbers",
    "spearman": "Spearman's correlation with people's numbers",
}
WAYS: Mapping[str, str] = {
    "": "of the fine-tuned model; its epoch chosen on a held-out tenth of the training part",
    "majority_": "of the same answer to every question (the best one)",
    "words_": "of a bag of words (TF-IDF, of pairs both texts' and how they differ; linear)",
    "probe_": "of a linear model on the frozen encoder's vectors",
    "zero_shot_": "of the cosine of the two texts' vectors; nothing is learned",
    "untrained_probe_": "of a linear model on the vectors of the same encoder before any training",
    "untrained_zero_shot_": "of the cosine of such vectors",
}


def _parts(task: Task) -> Mapping[str, str]:
    """What is reported on: end of a metric's name → part."""
    return task.reported or {"": "a tenth of the subset"}


def _of(task: Task) -> dict[str, Metric]:
    found = {
        f"{task.name}/share_cut{suffix}": Metric(
            says=f"Share of {task.name}'s examples ({part}) of which a text, or the joined pair where it is fine-tuned "
            "on, is longer than what the model reads; a bag of words reads all.",
            low=0.0,
            high=1.0,
        )
        for suffix, part in _parts(task).items()
    }
    similar = task.is_pair and task.is_regression
    for way, says in WAYS.items():
        if way.endswith("zero_shot_") and not similar:
            continue
        for suffix, part in _parts(task).items():
            for metric in task.metrics:
                low = 0.0 if metric in ("accuracy", "f1") else -1.0
                chance = None if way == "majority_" else f"{task.name}/majority_{metric}{suffix}"
                found[f"{task.name}/{way}{metric}{suffix}"] = Metric(
                    says=f"{SAYS[metric]} on {task.name} ({part}), {says}.",
                    goal="max",
                    low=low,
                    high=1.0,
                    chance=chance,
                )
    return found


METRICS: dict[str, Metric] = {
    name: metric for task in TASKS.values() for name, metric in _of(task).items()
}
TIMES = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of hidden tokens at which the gradient is measured: one below where the source's weights end to grow."""
PROBES: dict[str, Metric] = {
    "probe/word_order_accuracy": Metric(
        says="Share of held-out texts that a linear model tells from the same with neighbouring tokens swapped, on "
        "the frozen encoder's vectors; 0.5 is chance. Version 2: as many other held-out texts teach it, not half of "
        "these.",
        version=2,
        goal="max",
        low=0.0,
        high=1.0,
        chance=0.5,
    ),
    **{
        f"gradient/at_{time:g}": Metric(
            says=f"Length of the task loss's gradient where a share {time:g} of each text is hidden, weighted as in "
            "training and divided as in a batch of all shares; mean over batches of held-out texts.",
            low=0.0,
        )
        for time in TIMES
    },
}
