"""Many settings, several seeds: what changes with a knob, and what is only chance."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from lore_lib.config import ServingConfig
from lore_lib.errors import DataError
from lore_lib.rng import derive_seed, generator
from lore_lib.serving.latency import ServiceTimes
from lore_lib.serving.population import doubles
from lore_lib.serving.simulate import Pace, simulate
from lore_lib.serving.traffic import ZipfMandelbrot


class Way(NamedTuple):
    """One setting of a sweep."""

    policy: str
    config: ServingConfig
    law: ZipfMandelbrot
    at: Pace


def changed(config: ServingConfig, **settings: Any) -> ServingConfig:
    """The config with some settings changed, and checked again.

    Example:
        >>> changed(ServingConfig(), head_share=0.1).head_share
        0.1
    """
    return ServingConfig.model_validate({**config.model_dump(), **settings})


def sweep(
    judged: pd.DataFrame, ways: Mapping[str, Way], times: ServiceTimes, seeds: Sequence[int]
) -> pd.DataFrame:
    """Simulate every way once per seed; ways meet the same requests where their traffic is the same.

    Args:
        judged: as in `population.doubles`.
        ways: what to try, by name.
        times: measured service times.
        seeds: each draws its own doubles and its own requests.

    Returns:
        way, policy, seed, and the columns of `Tally.summary` for all strata together.
    """
    rows, none = [], np.random.default_rng(0)  # no bootstrap, so nothing is drawn from it
    for name, way in ways.items():
        shares = way.law.shares(way.config.queries)
        for seed in seeds:
            population = doubles(judged, way.config.queries, generator(seed, "doubles"))
            run = derive_seed(seed, "run")
            tally = simulate(population, shares, way.policy, way.config, times, run, way.at)
            total = tally.summary(way.config, 0, none).iloc[-1].drop("stratum")
            rows.append({"way": name, "policy": way.policy, "seed": seed, **total})
    return pd.DataFrame(rows)


def over_seeds(rows: pd.DataFrame, by: str = "way") -> pd.DataFrame:
    """Mean over seeds and its 95 % interval (Student's t).

    The interval is about the chance in traffic and doubles, not about how few pairs were judged.

    Args:
        rows: as `sweep` returns them.
        by: the column that names a setting.

    Returns:
        One row per setting and number: by, metric, value, low, high, seeds; NaN ends for a single seed.

    Raises:
        DataError: no row.
    """
    if rows.empty:
        raise DataError("no simulation to average; give 1 or more ways and seeds.")
    numbers = rows.drop(columns=["policy", "seed"], errors="ignore").set_index(by)
    long = numbers.astype(float).melt(ignore_index=False, var_name="metric").reset_index()
    grouped = long.groupby([by, "metric"], sort=False)["value"]
    table = grouped.agg(["mean", "std", "count"]).reset_index()
    arm = t.ppf(0.975, np.maximum(table["count"] - 1, 1)) * table["std"] / np.sqrt(table["count"])
    ends = {"low": table["mean"] - arm, "high": table["mean"] + arm}
    kept = table.rename(columns={"mean": "value", "count": "seeds"}).drop(columns="std")
    return kept.assign(**ends)[[by, "metric", "value", "low", "high", "seeds"]]
