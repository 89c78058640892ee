"""Linear models on fixed features, their regularisation chosen on the part that is there for it. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

from assay.engines.concepts.parts import Examples, Parts
from assay.engines.concepts.scores import Values, scores

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""C of the logistic regression, and 1 / alpha of the ridge: greater fits closer."""
STEPS = 2000
"""Of the logistic regression's solver, at most; it says so where that is too few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a way of answering reaches.

    Attributes:
        chosen: Metrics on `chosen`.
        reported: Metrics on `reported`, their names with the part's suffix.
        settings: What was chosen, such as the regularisation.
    """

    chosen: Mapping[str, float]
    reported: Mapping[str, float]
    settings: Mapping[str, Any]


def reported_scores(parts: Parts, answers: Callable[[Examples], Values]) -> dict[str, float]:
    """All metrics of a task on all parts that it is reported on.

    Args:
        parts: Of the task.
        answers: Gives classes or numbers for examples.
    """
    found: dict[str, float] = {}
    for suffix, part in parts.reported.items():
        values = scores(parts.task.metrics, answers(part), part.labels)
        found |= {name + suffix: value for name, value in values.items()}
    return found


def fit_linear(parts: Parts, features: Callable[[Examples], Any]) -> Measured:
    """Logistic regression (classes) or ridge (numbers), with the strength that is best on `chosen`.

    It learns from `train` only, and does not draw. Of equally good strengths the least is taken.

    Args:
        parts: Of the task.
        features: Rows of numbers for examples, dense or sparse [n, F]; called once for each part.
    """
    task, rows, tried = parts.task, features(parts.train), []
    chosen_rows = features(parts.chosen)
    for strength in STRENGTHS:
        # A model each, from the start: the result does not depend on the order of strengths.
        model: Any = (
            Ridge(alpha=1 / strength)
            if task.is_regression
            else LogisticRegression(C=strength, max_iter=STEPS)
        )
        if len(np.unique(parts.train.labels)) > 1:
            model.fit(rows, parts.train.labels)
        else:
            model = _Constant(parts.train.labels[0])
        found = scores(task.metrics, model.predict(chosen_rows), parts.chosen.labels)
        tried.append((found, strength, model))
    found, strength, model = max(tried, key=lambda each: each[0][task.first])
    return Measured(
        chosen=found,
        reported=reported_scores(parts, lambda part: model.predict(features(part))),
        settings={"strength": strength},
    )


@dataclass(frozen=True, slots=True)
class _Constant:
    """What there is to learn from examples that all have one answer."""

    value: float

    def predict(self, rows: Any) -> Values:
        return np.full(rows.shape[0], self.value)
