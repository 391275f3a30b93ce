"""What a way of training gained on pairs that it has never seen, against the model it began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lore_lib.config import Config, GrpoConfig
from lore_lib.sampling.engine import run_sample_jobs, sample_job
from lore_lib.sampling.intervals import crossed_bootstrap, paired_difference, t_interval
from lore_lib.sampling.pass_at_k import effects_table
from lore_lib.training.grpo_job import system_names, variants


def answers_of(systems: Mapping[str, Path], config: Config, asked: Path, folder: Path) -> pd.DataFrame:
    """Samples of every system for the same prompts, as `config.sampling` has it; what is there is kept.

    Args:
        systems: name -> model folder.
        config: of the run.
        asked: Parquet file of prompts.
        folder: for a file of samples per system.
    """
    jobs = [
        sample_job(config, name, model, asked, folder / f"{name}.parquet") for name, model in systems.items()
    ]
    return pd.concat(map(pd.read_parquet, run_sample_jobs(jobs, config.runtime.workers)))


def measures(k: int) -> dict[str, str]:
    """What is compared: name of the gain -> column of `sampling.pass_at_k.summarise`."""
    gains = {"pass@1": "pass_at_1", "vote": "vote_correct", f"pass@{k}": "pass_at_k", "tokens": "mean_tokens"}
    return {f"{name} gain": column for name, column in gains.items()}


def pooled_effects(
    samples: pd.DataFrame, gold: pd.DataFrame, k: int, resamples: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Rows of `sampling.pass_at_k.effects_table` for the mean over seeds, called "grpo".

    Args:
        samples: of the recipe's runs; a pair counts once for each.
        gold: pair_id, query_id, label.
        k: tries of pass@k.
        resamples: bootstrap draws, over queries.
        rng: their source.
    """
    pooled = samples.assign(pair_id=samples.pair_id + samples.system, system="grpo")
    pooled_gold = [gold.assign(pair_id=gold.pair_id + name) for name in samples.system.unique()]
    return effects_table(pooled, pd.concat(pooled_gold), k, resamples, rng).assign(n=len(gold))


def verdicts(gains: pd.DataFrame) -> pd.DataFrame:
    """In how many runs each measure rose, fell, or stayed within its interval.

    Args:
        gains: as `run_gains` gives them.

    Returns:
        A row per metric with columns rose, fell and "within its interval".
    """
    moves = np.select([gains.low > 0, gains.high < 0], ["rose", "fell"], "within its interval")
    counts = pd.crosstab(gains.metric, moves, colnames=["move"])
    return counts.reindex(columns=["rose", "fell", "within its interval"], fill_value=0)


def against_the_paper(gains: pd.DataFrame, k: int) -> str:
    """What the runs say about the paper's pair of effects, in a sentence.

    An interval that reaches 0 does not show that nothing was lost: the lowest bound says how much may be.

    Args:
        gains: as `run_gains` gives them.
        k: tries of pass@k.
    """
    first, reach = (gains[gains.metric == f"pass@{tries} gain"] for tries in (1, k))
    rose, fell = int((first.low > 0).sum()), int((reach.high < 0).sum())
    kept = f"is shown to fall in {fell}" if fell else "is not shown to fall"
    return (
        f"Paper: pass@1 rises, pass@{k} is kept. Of {len(reach)} runs here pass@1 is shown to rise in {rose};"
        f" pass@{k} {kept} (lowest bound {reach.low.min():+.3f})."
    )


def run_gains(
    scored: Mapping[str, pd.DataFrame],
    start: pd.DataFrame,
    names: Sequence[str],
    k: int,
    resamples: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The paired gain of each run, with an interval over queries.

    Args:
        scored: per-pair scores of each system, from `sampling.pass_at_k.summarise`, all of the same pairs.
        start: those of the model that the runs began with.
        names: the systems to compare.
        k: tries of pass@k.
        resamples: bootstrap draws.
        rng: their source.

    Returns:
        Columns system, metric, value, low, high, n (pairs).
    """
    queries = start.query_id
    rows = [
        (name, metric, *paired_difference(scored[name][column], start[column], queries, resamples, rng))
        for name in names
        for metric, column in measures(k).items()
    ]
    return pd.DataFrame(rows, columns=["system", "metric", "value", "low", "high"]).assign(n=len(start))


def way_gains(
    scored: Mapping[str, pd.DataFrame],
    start: pd.DataFrame,
    config: GrpoConfig,
    k: int,
    resamples: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The gain of each way of training, and of ways against each other, over seeds and queries at once.

    The first policy is compared with each other one over all curricula, the first curriculum with the other
    over all policies; runs with the same seed are paired.

    Args:
        scored: per-pair scores by the names of `training.grpo_job.system_names`.
        start: those of the model that all began with, of the same pairs.
        config: the ways and their seeds.
        k: tries of pass@k.
        resamples: bootstrap draws.
        rng: their source.

    Returns:
        Columns difference, metric, value, low, high (see `sampling.intervals.crossed_bootstrap`), lowest and
        highest (of the seeds), seeds, n (pairs). Ways come first, then what is between them.
    """
    names, shape = system_names(config), (len(config.curricula), len(config.policies), len(config.seeds), -1)
    rows = []
    for metric, column in measures(k).items():
        scores = [scored[name][column].to_numpy(float) - start[column].to_numpy(float) for name in names]
        for name, values in _compared(np.stack(scores).reshape(shape), config).items():
            interval = crossed_bootstrap(values, start.query_id, resamples, rng)
            rows.append((name, metric, *interval, values.mean(1).min(), values.mean(1).max()))
    return pd.DataFrame(rows, columns=_COLUMNS).assign(seeds=len(config.seeds), n=len(start))


def look_gains(probes: pd.DataFrame, config: GrpoConfig) -> pd.DataFrame:
    """The same comparisons on dev pairs, from the first look of a run to its last.

    Args:
        probes: a row per look of every run, from `training.grpo_rows.run_rows`.
        config: the ways and their seeds.

    Returns:
        Columns as of `way_gains`; low and high are those of Student's t over seeds and do not cover the
        choice of the dev pairs; n is the number of pairs, and k that of the looks' completions.
    """
    looks = probes.sort_values("rollout").groupby(["variant", "seed"])
    gain = looks.last(numeric_only=True) - looks.first(numeric_only=True)
    runs = pd.MultiIndex.from_product([[way.name for way in variants(config)], config.seeds])
    shape = len(config.curricula), len(config.policies), len(config.seeds)
    called = {"pass_at_1": "pass@1 gain", "pass_at_k": f"pass@{probes.n.iloc[0]} gain"}
    rows = []
    for column, metric in (called | {"mean_tokens": "tokens gain"}).items():
        for name, values in _compared(gain[column].reindex(runs).to_numpy().reshape(shape), config).items():
            rows.append((name, metric, *t_interval(values), values.min(), values.max()))
    return pd.DataFrame(rows, columns=_COLUMNS).assign(seeds=len(config.seeds), n=int(probes.pairs.iloc[0]))


_COLUMNS = ["difference", "metric", "value", "low", "high", "lowest", "highest"]


def _compared(gain: np.ndarray, config: GrpoConfig) -> dict[str, np.ndarray]:
    """From gains (curricula, policies, seeds, ...) those of each way, and between ways, seed by seed."""
    (policy, *policies), (curriculum, *curricula) = config.policies, config.curricula
    ways = [way.name for way in variants(config)]
    compared = dict(zip(ways, gain.reshape(-1, *gain.shape[2:]), strict=True))
    for place, clip in enumerate(policies, start=1):
        compared[f"{policy} - {clip}"] = (gain[:, 0] - gain[:, place]).mean(0)
    for place, order in enumerate(curricula, start=1):
        compared[f"{curriculum} - {order}"] = (gain[0] - gain[place]).mean(0)
    return compared
