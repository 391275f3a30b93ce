"""A benchmark in RAIR's three subsets, cut from a vertical's own test tables."""

import numpy as np
import pandas as pd

from lore_lib.errors import DataError
from lore_lib.vertical.schema import LABELS, RELEVANT

SUBSETS = ("general", "hard", "visual")


def build_benchmark(
    pairs: pd.DataFrame,
    queries: pd.DataFrame,
    items: pd.DataFrame,
    pairs_per_industry: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Tag each test pair with the one subset it belongs to.

    visual: only the picture settles the pair (kind visual). hard: any other pair of a long-tail query
        (intent not plain). general: the rest, at most `pairs_per_industry` drawn from each industry so that
        no large one drowns the others (RAIR, arXiv 2512.24943, caps its largest at 12.8 %); what is drawn
        off is left out.

    Args:
        pairs: pairs table; rows with split test are used.
        queries: queries table (intent).
        items: items table (industry).
        pairs_per_industry: cap of the general subset.

    Returns:
        The test pairs in their order with the columns intent, industry, subset.

    Raises:
        DataError: no test pairs, a cap below 1, or a pair whose query or item is unknown.
    """
    if pairs_per_industry < 1:
        raise DataError(f"found pairs_per_industry={pairs_per_industry}; use 1 or more.")
    rows = pairs[pairs["split"] == "test"].reset_index(drop=True)
    if rows.empty:
        raise DataError(
            f"none of {len(pairs)} pairs has split test; mark some queries and their pairs as test."
        )
    rows = rows.join(queries.set_index("query_id")["intent"], on="query_id", validate="m:1")
    rows = rows.join(items.set_index("item_id")["industry"], on="item_id", validate="m:1")
    for column, key in (("intent", "query_id"), ("industry", "item_id")):
        lost = rows.loc[rows[column].isna(), key]
        if len(lost):
            raise DataError(
                f"{len(lost)} test pairs name an unknown {key}, first {lost.iloc[0]}; add its row."
            )
    hard = np.where(rows["intent"] == "plain", "general", "hard")
    rows["subset"] = np.where(rows["kind"] == "visual", "visual", hard)
    general = rows[rows["subset"] == "general"]
    shuffled = general.iloc[rng.permutation(len(general))]
    surplus = shuffled.index[shuffled.groupby("industry").cumcount() >= pairs_per_industry]
    return rows.drop(index=surplus).reset_index(drop=True)


def count_benchmark(benchmark: pd.DataFrame) -> pd.DataFrame:
    """Pairs, queries and share of relevant labels per subset, in the order general, hard, visual.

    Returns:
        subset, pairs, queries, relevant_share, and one count column per label.
    """
    grouped = benchmark.assign(relevant=benchmark["label"].isin(RELEVANT)).groupby("subset")
    table = grouped.agg(
        pairs=("pair_id", "size"), queries=("query_id", "nunique"), relevant_share=("relevant", "mean")
    )
    labels = pd.crosstab(benchmark["subset"], benchmark["label"]).reindex(columns=list(LABELS), fill_value=0)
    return table.join(labels).reindex([name for name in SUBSETS if name in table.index]).reset_index()
