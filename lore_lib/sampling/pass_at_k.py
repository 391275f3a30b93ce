"""How good a model is when it may try once, vote, or try k times: pass@1, majority vote, pass@k."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lore_lib.errors import DataError
from lore_lib.sampling.intervals import cluster_bootstrap

PARSED = "ok"  # the parse_kind of a sample whose label could be read


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> NDArray[np.float64]:
    """Unbiased pass@k, 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).

    It is the chance that k samples drawn without replacement from the n hold a right one. With n = k it is
    just "any right"; sample n > k where pass@k near 0 or 1 matters.

    Args:
        n: samples drawn, any shape.
        c: of them right, the same shape.
        k: tries.

    Returns:
        pass@k in [0, 1], the common shape of n and c.

    Raises:
        DataError: k < 1, n < k, or c outside 0..n.

    Example:
        >>> pass_at_k(4, [0, 1, 2, 4], k=2).round(3).tolist()
        [0.0, 0.5, 0.833, 1.0]
    """
    samples, right = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if k < 1:
        raise DataError(f"pass@k with k={k}; k counts tries, so use 1 or more.")
    if (samples < k).any():
        raise DataError(f"pass@{k} from n={samples.min()} samples; draw at least {k} or lower k.")
    if ((right < 0) | (right > samples)).any():
        raise DataError("the number of right samples must lie in 0..n; recount it.")
    tries = np.arange(k)
    wrong = (samples - right)[..., None] - tries
    return np.asarray(
        1 - np.prod(np.clip(wrong, 0, None) / (samples[..., None] - tries), axis=-1), dtype=float
    )


def expected_chance_pass_at_k(k: int, labels: int = 4) -> float:
    """Expected pass@k of a guesser that picks one of `labels` labels evenly: the line to print beside pass@k.

    >>> round(expected_chance_pass_at_k(8), 3)
    0.9
    """
    return float(1 - (1 - 1 / labels) ** k)


def majority_vote(samples: pd.DataFrame) -> pd.Series:
    """The label most samples of a pair agree on.

    A tie goes to the lowest of the tied labels (L1 before L4: a split vote never promotes an item). Samples
    that could not be parsed have no vote, and a pair without a parsed sample gets "".

    Args:
        samples: columns pair_id and label ("" when not parsed).

    Returns:
        Label by pair_id, pairs in sorted order, named "vote".

    Example:
        >>> majority_vote(pd.DataFrame({"pair_id": ["p"] * 4, "label": ["", "L3", "L2", ""]})).to_dict()
        {'p': 'L2'}
    """
    counts = pd.crosstab(samples["pair_id"], samples["label"]).sort_index(axis="columns")
    counts = counts.drop(columns="", errors="ignore")
    if counts.empty:
        return pd.Series("", index=counts.index, name="vote")
    return counts.idxmax(axis="columns").where(counts.max(axis="columns") > 0, "").rename("vote")


def summarise(samples: pd.DataFrame, gold: pd.DataFrame, k: int) -> pd.DataFrame:
    """Score the samples of one system, pair by pair. A sample that could not be parsed is wrong.

    Args:
        samples: one system's rows: pair_id, sample, label, parse_kind, tokens.
        gold: pair_id, query_id, label; may hold more pairs than were sampled.
        k: tries of pass@k.

    Returns:
        One row per sampled pair: pair_id, query_id, n, correct, pass_at_1, pass_at_k, vote_correct (bool),
        parse_rate, mean_tokens. Take their means, and intervals with `intervals.cluster_bootstrap` over
        query_id.

    Raises:
        DataError: no samples, a sample number repeated within a pair (two systems mixed?), a pair without
            gold, a pair twice in gold, or a pair with fewer than k samples.
    """
    if samples.empty:
        raise DataError("no samples to score; run the sampling step first.")
    repeated = samples.loc[samples.duplicated(["pair_id", "sample"]), "pair_id"]
    if len(repeated):
        raise DataError(
            f"{len(repeated)} samples repeat a (pair_id, sample), first of pair {repeated.iloc[0]}; "
            "score one system at a time (groupby('system'))."
        )
    if gold["pair_id"].duplicated().any():
        raise DataError(
            f"pair {gold.loc[gold['pair_id'].duplicated(), 'pair_id'].iloc[0]} stands twice in gold."
        )
    truth = gold.set_index("pair_id")[["query_id", "label"]].rename(columns={"label": "gold"})
    unknown = sorted(set(samples["pair_id"]) - set(truth.index))
    if unknown:
        raise DataError(
            f"{len(unknown)} sampled pairs have no gold label, first {unknown[0]}; join the right split."
        )

    rows = samples.drop(columns="query_id", errors="ignore").join(truth, on="pair_id")
    rows = rows.assign(right=rows["label"] == rows["gold"], parsed=rows["parse_kind"] == PARSED)
    grouped = rows.groupby("pair_id", sort=True)
    table = pd.DataFrame(
        {
            "query_id": grouped["query_id"].first(),
            "n": grouped.size(),
            "correct": grouped["right"].sum().astype(int),
        }
    )
    short = table.loc[table["n"] < k, "n"]
    if len(short):
        raise DataError(
            f"{len(short)} pairs have under k={k} samples, first {short.index[0]!s} (n={short.iloc[0]}); "
            "sample the missing ones or lower k."
        )
    table["pass_at_1"] = pass_at_k(table["n"], table["correct"], 1)
    table["pass_at_k"] = pass_at_k(table["n"], table["correct"], k)
    table["vote_correct"] = majority_vote(rows) == truth.loc[table.index, "gold"]
    table["parse_rate"] = grouped["parsed"].mean()
    table["mean_tokens"] = grouped["tokens"].mean()
    return table.rename_axis("pair_id").reset_index()


def parse_failures(samples: pd.DataFrame) -> pd.DataFrame:
    """How often each system's samples could not be parsed, by kind.

    Args:
        samples: columns system and parse_kind.

    Returns:
        system, parse_kind, count, share (of the system's samples); faults only, most frequent first. Empty
        when every sample was parsed.
    """
    counts = samples.groupby(["system", "parse_kind"]).size().rename("count").reset_index()
    counts["share"] = counts["count"] / counts.groupby("system")["count"].transform("sum")
    faults = counts[counts["parse_kind"] != PARSED]
    return faults.sort_values(["system", "count"], ascending=[True, False], ignore_index=True)


def effects_table(
    samples: pd.DataFrame, gold: pd.DataFrame, k: int, resamples: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The table of effects: pass@1, majority vote and pass@k per system, with 95 % intervals over queries.

    Args:
        samples: rows of one or more systems, in the order to show.
        gold: pair_id, query_id, label of the pairs.
        k: tries of pass@k.
        resamples: bootstrap resamples.
        rng: source of the resamples.

    Returns:
        Columns system, metric ("pass@1", "vote", "pass@<k>"), value, low, high, chance (NaN for vote), n
        (pairs), parse_rate, mean_tokens.
    """
    chance = {
        "pass@1": expected_chance_pass_at_k(1),
        "vote": np.nan,
        f"pass@{k}": expected_chance_pass_at_k(k),
    }
    columns = {"pass@1": "pass_at_1", "vote": "vote_correct", f"pass@{k}": "pass_at_k"}
    rows = []
    for system, part in samples.groupby("system", sort=False):
        scored = summarise(part, gold, k)
        for metric, column in columns.items():
            values = scored[column].to_numpy(dtype=float)
            low, high = cluster_bootstrap(values, scored["query_id"], resamples, rng)
            rows.append(
                {"system": system, "metric": metric, "value": values.mean(), "low": low, "high": high,
                 "chance": chance[metric], "n": len(scored), "parse_rate": scored["parse_rate"].mean(),
                 "mean_tokens": scored["mean_tokens"].mean()}
            )  # fmt: skip
    return pd.DataFrame(rows)
