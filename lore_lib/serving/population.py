"""Many simulated queries out of a few judged ones."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.traffic import Ints
from lore_lib.vertical.schema import LABELS, RELEVANT

UNREAD = len(LABELS)  # the code of an answer that could not be read
_NEEDED = ("query_id", "item_id", "label", "llm_label", "student_label")
JUDGES = ("llm_label", "student_label")


@dataclass(frozen=True)
class Population:
    """Simulated queries, numbered by popularity, each a double of a judged one.

    A double has as many pairs as its original, and each shows one of the original's judged pairs: so the
    judges are as right on it as they were on the original. Popularity and difficulty are thus independent
    unless the judged queries themselves are given as the population (`as_they_are`).
    """

    source: Ints  # (queries,) number of the original
    sources: int  # how many originals there are
    first: Ints  # (queries + 1,) the pairs of query q are first[q] ... first[q + 1] - 1
    row: Ints  # (pairs,) the judged row that each shows at the start
    row_first: Ints  # (sources + 1,) likewise for the judged rows of an original
    gold: Ints  # (rows,) 0..3 for L1..L4
    answers: Ints  # (2, rows) of the LLM and the student, 0..3, or UNREAD
    confidence: Floats  # (rows,) of the student in its answer
    page: Floats  # (2, sources) share of the pairs called relevant by each judge that are; 0 if it calls none

    @property
    def pairs_per_query(self) -> Ints:
        """(queries,)."""
        return np.diff(self.first)

    def another_row(self, pairs: Ints, rows: Ints, rng: np.random.Generator) -> Ints:
        """What these pairs show after a change: another judged row of their query, if it has one."""
        source = self.source[np.searchsorted(self.first, pairs, side="right") - 1]
        begin, count = self.row_first[source], np.diff(self.row_first)[source]
        step = 1 + (rng.random(len(pairs)) * np.maximum(count - 1, 1)).astype(np.int64)
        return np.asarray(begin + (rows - begin + step) % count)


def as_they_are(judged: pd.DataFrame, popularity: pd.Series) -> Population:
    """The judged queries themselves, most popular first.

    Args:
        judged: query_id, item_id, label (gold), llm_label, student_label ("" when not parsed), and
            student_confidence (without it the student is always sure).
        popularity: shares by query_id, as `traffic.popularity` gives them. Queries without a judged pair are
            an error: their answers are not known.

    Raises:
        DataError: a column, a pair or a label is missing.
    """
    table, names, _ = _checked(judged)
    place = pd.Index(names).get_indexer(pd.Index(popularity.index.astype(str)))
    if (place < 0).any():
        lost = popularity.index[place < 0]
        raise DataError(f"{len(lost)} queries have traffic but no pair, first {lost[0]}; give them pairs.")
    return _build(table, place)


def doubles(judged: pd.DataFrame, queries: int, rng: np.random.Generator) -> Population:
    """As many queries as asked for, each judged query doubled equally often, in random order.

    Args:
        judged: as in `as_they_are`.
        queries: how many.
        rng: source of the order.
    """
    table, names, _ = _checked(judged)
    if queries < 1:
        raise DataError(f"queries={queries}; simulate 1 or more (serving.queries).")
    rounds = [rng.permutation(len(names)) for _ in range(-(-queries // len(names)))]
    return _build(table, np.concatenate(rounds)[:queries])


def _checked(judged: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.str_], Ints]:
    missing = [name for name in _NEEDED if name not in judged]
    if missing:
        raise DataError(f"judged pairs lack {', '.join(missing)}; they need {', '.join(_NEEDED)}.")
    if judged.empty:
        raise DataError("no judged pair, so no answer is known; give 1 or more.")
    twice = int(judged.duplicated(["query_id", "item_id"]).sum())
    if twice:
        raise DataError(f"{twice} judged pairs stand twice; keep one row of each.")
    table = judged.assign(query_id=judged["query_id"].astype(str)).sort_values("query_id", kind="stable")
    names, first = np.unique(table["query_id"].to_numpy(dtype=str), return_index=True)
    return table, names, first


def _build(table: pd.DataFrame, source: Ints) -> Population:
    codes = {name: _codes(table[name], unread=name != "label") for name in ("label", *JUDGES)}
    _, row_first = np.unique(table["query_id"].to_numpy(dtype=str), return_index=True)
    row_first = np.append(row_first, len(table))
    count = np.diff(row_first)[source]
    first = np.concatenate([[0], np.cumsum(count)])
    row = np.repeat(row_first[source] - first[:-1], count) + np.arange(first[-1])
    relevant = np.isin([*LABELS, ""], list(RELEVANT))
    query_of_row = np.repeat(np.arange(len(row_first) - 1), np.diff(row_first))
    pages = []
    for judge in JUDGES:
        shown = relevant[codes[judge]]
        good = np.bincount(query_of_row, shown & relevant[codes["label"]], len(row_first) - 1)
        pages.append(good / np.maximum(np.bincount(query_of_row, shown, len(row_first) - 1), 1))
    sure = table["student_confidence"] if "student_confidence" in table else pd.Series(1.0, table.index)
    return Population(
        source=source,
        sources=len(row_first) - 1,
        first=first,
        row=row,
        row_first=row_first,
        gold=codes["label"],
        answers=np.stack([codes[judge] for judge in JUDGES]),
        confidence=np.asarray(sure, dtype=np.float64),
        page=np.stack(pages),
    )


def _codes(labels: pd.Series, unread: bool) -> Ints:
    known = [*LABELS, ""] if unread else list(LABELS)
    codes = pd.Index(known).get_indexer(pd.Index(labels))
    if (codes < 0).any():
        found = labels[codes < 0].iloc[0]
        raise DataError(f"{labels.name}: found {found!r}; it must be one of {', '.join(map(repr, known))}.")
    return np.asarray(codes, dtype=np.int64)
