"""Scores computed offline for the hot query-item pairs, read back online by key."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lore_lib.errors import DataError

KEY = ["query_id", "item_id"]


def head_pairs(log: pd.DataFrame, strata: pd.Series) -> pd.DataFrame:
    """The distinct pairs of head queries that a past log shows: what the offline job scores.

    A head query's item that was never shown before is not among them, so it will miss the cache, as in life.

    Args:
        log: query_id, item_id of past requests.
        strata: stratum by query_id, as `strata.frequency_strata` gives it.

    Returns:
        query_id, item_id, once each, in order of first sight.
    """
    head = log["query_id"].map(strata) == "head"
    return log.loc[head, KEY].drop_duplicates(ignore_index=True)


class ScoreCache:
    """A frozen (query_id, item_id) -> label table.

    Example:
        >>> cache = ScoreCache(pd.DataFrame({"query_id": ["q"], "item_id": ["i"], "label": ["L4"]}))
        >>> cache.lookup(pd.DataFrame({"query_id": ["q", "q"], "item_id": ["i", "j"]})).tolist()
        ['L4', '']
    """

    def __init__(self, scored: pd.DataFrame) -> None:
        """Take the offline scores.

        Args:
            scored: query_id, item_id, label; each pair once.

        Raises:
            DataError: a pair stands twice.
        """
        twice = int(scored.duplicated(KEY).sum())
        if twice:
            raise DataError(f"{twice} cached pairs stand twice; keep the newest score of each.")
        self._labels = scored.set_index(KEY)["label"]

    def __len__(self) -> int:
        return len(self._labels)

    def lookup(self, pairs: pd.DataFrame) -> NDArray[np.str_]:
        """The cached label of each row of query_id, item_id; "" is a miss."""
        place = self._labels.index.get_indexer(pd.MultiIndex.from_frame(pairs[KEY]))
        labels = np.append(self._labels.to_numpy(dtype=str), "")
        return labels[place]  # a miss has place -1: the last
