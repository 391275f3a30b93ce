"""Calibration: temperature and ECE against numbers worked by hand and a known answer."""

import numpy as np
import pandas as pd
import pytest

from lore_lib.errors import DataError
from lore_lib.serving.calibration import expected_calibration_error, fit_temperature, reliability, temper
from lore_lib.vertical.schema import LABELS

SHARES = np.array([[0.9, 0.1, 0, 0], [0.85, 0.15, 0, 0], [0.0, 0.3, 0.35, 0.35], [0, 0, 0, 1.0]])
GOLD = pd.Series(["L1", "L2", "L3", "L4"])


def test_bins_by_hand() -> None:
    rows = reliability(SHARES, GOLD, bins=10)
    assert rows["pairs"].tolist() == [1, 1, 2]
    assert rows["confidence"].tolist() == pytest.approx([0.35, 0.85, 0.95])
    assert rows["accuracy"].tolist() == [1, 0, 1]


def test_the_error_by_hand() -> None:
    assert expected_calibration_error(SHARES, GOLD) == pytest.approx((0.65 + 0.85 + 2 * 0.05) / 4)


def test_a_judge_that_is_as_sure_as_it_is_right_has_no_error() -> None:
    shares = np.tile([0.75, 0.25, 0, 0], (400, 1))
    assert expected_calibration_error(shares, pd.Series(["L1"] * 300 + ["L2"] * 100)) == pytest.approx(
        0, abs=1e-9
    )


def test_the_temperature_that_was_applied_is_found() -> None:
    rng = np.random.default_rng(0)
    honest = rng.dirichlet([0.5] * 4, 4000)
    gold = pd.Series([LABELS[rng.choice(4, p=row)] for row in honest])
    sharpened = temper(honest, 1 / 2.5)
    assert fit_temperature(honest, gold) == pytest.approx(1, abs=0.1)
    assert fit_temperature(sharpened, gold) == pytest.approx(2.5, rel=0.1)
    mended = temper(sharpened, fit_temperature(sharpened, gold))
    assert expected_calibration_error(mended, gold) < 0.3 * expected_calibration_error(sharpened, gold)


def test_temperature_keeps_order_and_sums() -> None:
    for temperature in (0.2, 1.0, 7.0):
        warm = temper(SHARES[:3], temperature)
        assert warm.sum(axis=1) == pytest.approx(np.ones(3))
        assert (warm.argmax(axis=1) == SHARES[:3].argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("shares", "gold"),
    [
        (SHARES[:0], GOLD[:0]),
        (SHARES[:2], GOLD[:3]),
        (SHARES[:1], pd.Series(["L5"])),
        (SHARES[:1], pd.Series([""])),
    ],
)
def test_labels_must_fit(shares: np.ndarray, gold: pd.Series) -> None:
    with pytest.raises(DataError, match="L1, L2, L3, L4"):
        fit_temperature(shares, gold)
