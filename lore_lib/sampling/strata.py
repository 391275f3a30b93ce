"""Difficulty strata from how many samples are right, and the pool and order in which RL sees the prompts."""

import numpy as np
import pandas as pd

from lore_lib.config import Curriculum, GrpoConfig
from lore_lib.errors import DataError

STRATA = ("unsolved", "hard", "medium", "easy", "solved")  # from no sample right to all right


def stratify(per_pair: pd.DataFrame) -> pd.DataFrame:
    """Name each pair's difficulty by c right of n samples, in exact thirds.

    unsolved: c = 0; hard: 0 < c <= n/3; medium: n/3 < c <= 2n/3; easy: 2n/3 < c < n; solved: c = n.
    With n = 8 that is 0 | 1-2 | 3-5 | 6-7 | 8.

    Args:
        per_pair: columns n and correct, as `pass_at_k.summarise` gives them.

    Returns:
        A copy with the ordered categorical column stratum.

    Raises:
        DataError: a pair whose correct is not in 0..n, or whose n is 0.

    Example:
        >>> stratify(pd.DataFrame({"n": 8, "correct": [0, 2, 3, 7, 8]}))["stratum"].tolist()
        ['unsolved', 'hard', 'medium', 'easy', 'solved']
    """
    n, correct = (per_pair[name].to_numpy(dtype=int) for name in ("n", "correct"))
    odd = (n < 1) | (correct < 0) | (correct > n)
    if odd.any():
        first = per_pair[odd].iloc[0]
        raise DataError(
            f"{odd.sum()} pairs break 0 <= correct <= n, first {first['correct']} of {first['n']}."
        )
    level = (correct > 0).astype(int) + (3 * correct > n) + (3 * correct > 2 * n) + (correct == n)
    names = np.array(STRATA)[level]
    return per_pair.assign(stratum=pd.Categorical(names, categories=list(STRATA), ordered=True))


def hard_sample_pool(
    per_pair: pd.DataFrame, easy_share: float, size: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Choose the prompts RL trains on: those with a signal, and some the policy must not forget.

    A group whose samples are all right or all wrong has zero advantage. So 0 < c < n is kept ("learnable"),
    unsolved pairs are left out, and solved ones make up `easy_share` of the pool ("retained"), for the
    policy can lose them again. The pool is smaller than `size` when there are too few learnable pairs: it
    is never padded.

    Args:
        per_pair: columns n, correct and whatever else should come along.
        easy_share: share of the pool that is solved, in [0, 1); less if there are not that many.
        size: largest pool, in pairs.

    Returns:
        The chosen rows in their given order, with the columns stratum and reason ("learnable" | "retained").

    Raises:
        DataError: easy_share or size out of range, or no pair has 0 < c < n.
    """
    if not 0 <= easy_share < 1 or size < 1:
        raise DataError(f"found easy_share={easy_share}, size={size}; use 0 <= easy_share < 1 and size >= 1.")
    pairs = stratify(per_pair).reset_index(drop=True)
    learnable = np.flatnonzero(~pairs["stratum"].isin(["unsolved", "solved"]))
    solved = np.flatnonzero(pairs["stratum"] == "solved")
    if len(learnable) == 0:
        counts = pairs["stratum"].value_counts().loc[list(STRATA)].to_dict()
        raise DataError(
            f"none of {len(pairs)} pairs has 0 < c < n ({counts}), so no group would have a gradient. "
            "Sample more pairs, raise sampling.temperature or sampling.n, or take an earlier checkpoint."
        )
    keep = min(len(learnable), max(1, round((1 - easy_share) * size)))
    retain = min(len(solved), size - keep, round(keep * easy_share / (1 - easy_share)))
    chosen = pairs.assign(reason="")
    chosen.loc[rng.choice(learnable, keep, replace=False), "reason"] = "learnable"
    chosen.loc[rng.choice(solved, retain, replace=False), "reason"] = "retained"
    return chosen[chosen["reason"] != ""].reset_index(drop=True)


def curriculum_order(pool: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Order a pool easy -> medium -> hard, shuffled within each stratum.

    Retained (solved) pairs are strewn evenly over the whole order: put first they would fill rollouts that
    have no advantage, put last they would come too late to be remembered.

    Args:
        pool: what `hard_sample_pool` returns.

    Returns:
        The same rows in order, index renewed; rollouts draw from windows of it, see `curriculum_window`.
    """
    shuffled = pool.iloc[rng.permutation(len(pool))]
    retained = (shuffled["reason"] == "retained").to_numpy()
    place = np.empty(len(pool))
    ascent = np.argsort(-shuffled.loc[~retained, "stratum"].cat.codes.to_numpy(), kind="stable")
    learnable = np.flatnonzero(~retained)[ascent]
    place[learnable] = (np.arange(len(learnable)) + 0.5) / max(len(learnable), 1)
    place[retained] = (np.arange(retained.sum()) + 0.5) / max(retained.sum(), 1)
    return shuffled.iloc[np.argsort(place, kind="stable")].reset_index(drop=True)


def pool_counts(sampled: pd.DataFrame, pool: pd.DataFrame, share: float) -> pd.DataFrame:
    """How many pairs of each stratum were sampled, are in the pool, and stand in its window along training.

    Args:
        sampled: every pair with its stratum.
        pool: the ordered pool, likewise.
        share: width of the window as a share of the pool.

    Returns:
        Columns system (whose pairs), stratum, pairs.
    """
    groups = {"sampled pairs": sampled, "pool": pool}
    for name, progress in {"window at the start": 0, "half-way": 0.5, "at the end": 1}.items():
        groups[name] = pool.iloc[list(curriculum_window(len(pool), progress, share))]
    rows = pd.concat(part.assign(system=name) for name, part in groups.items())
    return rows.groupby(["system", "stratum"], sort=False).size().rename("pairs").reset_index()


def pool_reasons(sampled: pd.DataFrame, pool: pd.DataFrame) -> pd.DataFrame:
    """How many pairs of each stratum the pool took for which reason, and how many it left out.

    Args:
        sampled: every pair: pair_id, stratum.
        pool: what `hard_sample_pool` made of them: pair_id, reason.

    Returns:
        Pairs, a row per stratum, columns learnable, retained and "left out".
    """
    reason = sampled["pair_id"].map(pool.set_index("pair_id")["reason"]).fillna("left out")
    counts = pd.crosstab(sampled["stratum"], reason.rename("reason"))
    return counts.reindex(list(STRATA), columns=["learnable", "retained", "left out"], fill_value=0)


def window_shares(pool: pd.DataFrame, config: GrpoConfig, stops: int = 9) -> pd.DataFrame:
    """What stands in the window of the recipe's curriculum along training.

    Args:
        pool: the ordered pool, with its stratum.
        config: the curriculum (the first one), its window and how many rollouts there are.
        stops: rollouts to look at, evenly spread from the first to the last.

    Returns:
        Share of the window's pairs by rollout (rows, from 1) and stratum (columns, easy ones first).
    """
    how = config.window_share, config.curricula[0], config.prompts_per_rollout
    windows = curriculum_windows(len(pool), config.rollouts, *how)
    places = np.unique(np.linspace(0, config.rollouts - 1, stops).round().astype(int))
    shares = {
        place + 1: pool["stratum"].iloc[list(windows[place])].value_counts(normalize=True) for place in places
    }
    table = pd.DataFrame(shares).T.reindex(columns=["easy", "medium", "hard", "solved"], fill_value=0.0)
    return table.rename_axis(index="rollout", columns="stratum")


def curriculum_window(
    size: int, progress: float, share: float, curriculum: Curriculum = "easy_to_hard", least: int = 1
) -> range:
    """Places of an ordered pool from which a rollout draws: a window that slides from the start to the end.

    Args:
        size: pairs in the pool.
        progress: share of training done, from 0 to 1.
        share: width of the window as a share of the pool.
        curriculum: "shuffled" opens the window over the whole pool at all times: the control that tells what
            the order is worth.
        least: smallest window, in pairs.

    Example:
        >>> [list(curriculum_window(8, progress, 0.5)) for progress in (0, 0.5, 1)]
        [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    """
    width = size if curriculum == "shuffled" else min(size, max(least, round(share * size)))
    start = round(progress * (size - width))
    return range(start, start + width)


def curriculum_windows(
    size: int, rollouts: int, share: float, curriculum: Curriculum, least: int
) -> list[range]:
    """The window of each rollout of a training; arguments as in `curriculum_window`."""
    last = max(1, rollouts - 1)
    return [curriculum_window(size, place / last, share, curriculum, least) for place in range(rollouts)]
