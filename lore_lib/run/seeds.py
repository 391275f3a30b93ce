"""Runs that differ in their seed, in one table: does what one run shows come back in the others?

A seed draws everything anew: the world, the test queries, the order of training and the samples. An interval
inside one run says how far other queries would move a number; the interval here says how far another run
would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lore_lib.artifacts import Manifest
from lore_lib.errors import ArtifactError, nearest
from lore_lib.run.report import gather


def over_seeds(runs: Sequence[str], stage: str) -> pd.DataFrame:
    """Every number of a stage over runs.

    Args:
        runs: names of two runs or more, of one profile and vertical, each with a seed of its own.
        stage: one that all of them have finished.

    Returns:
        One row per metric that all runs have: name, mean, low and high (95 % t interval over the runs, which
        takes them as independent), lowest, highest, runs.

    Raises:
        ArtifactError: fewer than two runs, one that is not there or has not finished the stage, two of one
            seed, or runs of several profiles or verticals.
    """
    manifests = [_finished(run, stage) for run in runs]
    if len(manifests) < 2:
        raise ArtifactError("one run has no spread: name two or more, such as lore seeds demo demo-18")
    for field in ("profile", "vertical"):
        found = sorted({str(getattr(manifest, field)) for manifest in manifests})
        if len(found) > 1:
            raise ArtifactError(f"the runs are of {field} {' and '.join(found)}; compare those of one")
    seeds = [manifest.seed for manifest in manifests]
    if twice := {seed for seed in seeds if seeds.count(seed) > 1}:
        raise ArtifactError(f"several runs have the seed {twice.pop()}: they are no draws of their own")
    tables = [{metric.name: metric.value for metric in manifest.metrics} for manifest in manifests]
    rows = []
    for name in tables[0]:
        if all(name in table for table in tables):
            values = np.array([table[name] for table in tables])
            rows.append((name, *_t_interval(values), values.min(), values.max(), len(values)))
    return pd.DataFrame(rows, columns=["name", "mean", "low", "high", "lowest", "highest", "runs"])


def differing_settings(runs: Sequence[str], stage: str) -> list[str]:
    """Settings that are not the same in all runs, such as "grpo.seeds": what differs may be due to them."""
    configs = pd.DataFrame([pd.json_normalize(_finished(run, stage).config).iloc[0].map(str) for run in runs])
    differing = configs.columns[configs.nunique(dropna=False) > 1]
    return sorted(name for name in differing if name not in ("run", "seed") and "runtime." not in name)


def _finished(run: str, stage: str) -> Manifest:
    manifests = {manifest.stage: manifest for manifest in gather(run)}
    if stage not in manifests:
        raise ArtifactError(f"run {run!r} has not finished {stage!r}; {nearest(stage, list(manifests))}")
    return manifests[stage]


def _t_interval(values: np.ndarray) -> tuple[float, float, float]:
    mean, spread = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * spread
    return mean, mean - reach, mean + reach
