"""How good answers are: the metrics of labelled tasks, by scikit-learn and scipy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

Values = NDArray[Any]
"""Classes (whole numbers) or numbers, one an example."""
CONSTANT = 1e-12
"""Numbers whose range is less than this share of the greatest differ by rounding alone."""


def scores(names: Sequence[str], predicted: Values, labels: Values) -> dict[str, float]:
    """Metrics of answers, each at most 1.

    Args:
        names: "accuracy"; "f1" (of class 1 of two); "mcc" (Matthews' correlation); "pearson",
            "spearman" (correlations; of a constant there is none, it counts as 0, as with "mcc").
        predicted: Classes or numbers [n].
        labels: The right ones [n].
    """
    return {name: _METRICS[name](labels, predicted) for name in names}


def _correlation(of: Any) -> Any:
    def value(labels: Values, predicted: Values) -> float:
        pair = [np.asarray(each, np.float64) for each in (labels, predicted)]
        if len(labels) < 2 or any(np.ptp(x) <= CONSTANT * np.abs(x).max() for x in pair):
            return 0.0
        return float(of(*pair).statistic)

    return value


_METRICS = {
    "accuracy": lambda labels, predicted: float(metrics.accuracy_score(labels, predicted)),
    "f1": lambda labels, predicted: float(metrics.f1_score(labels, predicted, zero_division=0.0)),
    "mcc": lambda labels, predicted: float(metrics.matthews_corrcoef(labels, predicted)),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}
