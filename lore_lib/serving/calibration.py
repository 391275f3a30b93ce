"""Is a judge that is 80 % sure right 80 times of 100? Measured, and mended by one number."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats
from lore_lib.vertical.schema import LABELS

HOTTEST = 20.0  # temperatures from 1 / HOTTEST to HOTTEST are tried


def temper(shares: Floats, temperature: float) -> Floats:
    """Soften (temperature above 1) or sharpen probabilities; the most probable label stays.

    Args:
        shares: (rows, labels), each row sums to 1.
        temperature: divides the logits.

    Example:
        >>> temper(np.array([[0.9, 0.1]]), 2.0).round(2).tolist()
        [[0.75, 0.25]]
    """
    if temperature == 1:
        return shares
    logits = np.log(np.clip(shares, 1e-12, 1)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_temperature(shares: Floats, labels: pd.Series) -> float:
    """The temperature at which the gold labels are likeliest (Guo et al. 2017, arXiv 1706.04599).

    Fit it on pairs that neither taught the student nor are to judge it.

    Args:
        shares: (pairs, 4), probabilities of L1..L4.
        labels: gold label of each pair.

    Raises:
        DataError: no pairs, or a label that is none.
    """
    gold = _columns(shares, labels)

    def loss(log_temperature: float) -> float:
        right = temper(shares, float(np.exp(log_temperature)))[np.arange(len(gold)), gold]
        return float(-np.log(np.clip(right, 1e-12, 1)).mean())

    bounds = (-np.log(HOTTEST), np.log(HOTTEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def reliability(shares: Floats, labels: pd.Series, bins: int = 10) -> pd.DataFrame:
    """How often the judge is right among answers of like confidence; bins of equal width.

    Args:
        shares: (pairs, 4), probabilities of L1..L4.
        labels: gold label of each pair.
        bins: of confidence, from 0 to 1.

    Returns:
        One row per bin that holds answers: pairs, confidence (mean probability of the label given), accuracy.

    Raises:
        DataError: no pairs, or a label that is none.
    """
    gold = _columns(shares, labels)
    sure = shares.max(axis=1)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    answers = pd.DataFrame({"bin": place, "confidence": sure, "accuracy": shares.argmax(axis=1) == gold})
    rows = answers.groupby("bin").agg(
        pairs=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    return rows.reset_index(drop=True)


def expected_calibration_error(shares: Floats, labels: pd.Series, bins: int = 10) -> float:
    """Mean distance of accuracy and confidence over the bins of `reliability`, weighted by their pairs.

    Example:
        >>> shares = np.array([[0.0, 0.0, 0.2, 0.8]] * 2)
        >>> round(expected_calibration_error(shares, pd.Series(["L4", "L3"])), 2)
        0.3
    """
    rows = reliability(shares, labels, bins)
    return float(((rows["accuracy"] - rows["confidence"]).abs() * rows["pairs"]).sum() / rows["pairs"].sum())


def _columns(shares: Floats, labels: pd.Series) -> NDArray[np.intp]:
    """The column of each gold label."""
    gold: NDArray[np.intp] = pd.Index(LABELS).get_indexer(pd.Index(labels))
    if len(gold) == 0 or len(gold) != len(shares) or (gold < 0).any():
        raise DataError(
            f"{len(labels)} labels for {len(shares)} rows, 1 or more; give each one of {', '.join(LABELS)}"
        )
    return gold
