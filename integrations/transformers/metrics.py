"""The metrics that GLUE reports, from scikit-learn and scipy; higher is better for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def _correlation(measure: Callable[..., Any], labels: np.ndarray, predictions: np.ndarray) -> float:
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0  # a constant orders nothing; scipy would answer NaN, which no threshold can be compared with
    return float(measure(labels, predictions).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "matthews": matthews_corrcoef,
    "f1": partial(f1_score, zero_division=0.0),
    "spearman": partial(_correlation, spearmanr),
    "pearson": partial(_correlation, pearsonr),
}
