"""Judges that do not reason: majority label, lexical overlap, TF-IDF with logistic regression.

All fit on a frame with columns query, item_text, label and predict from query, item_text. Texts are
compared as character 3-grams within words, so scripts without spaces and spelling variants need no
tokenizer.
"""

from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from lore_lib.errors import DataError


class Baseline(Protocol):
    """What every judge of pairs can do."""

    name: str

    def fit(self, train: pd.DataFrame) -> "Baseline":
        """Learn from columns query, item_text, label; returns itself."""
        ...

    def predict(self, frame: pd.DataFrame) -> list[str]:
        """One label per row of columns query, item_text."""
        ...


class MajorityLabel:
    """Always the label most frequent in training (ties: the lowest)."""

    name = "majority label"

    def fit(self, train: pd.DataFrame) -> "MajorityLabel":
        """Count the labels."""
        _check(train)
        self._label = str(train["label"].value_counts().sort_index().idxmax())
        return self

    def predict(self, frame: pd.DataFrame) -> list[str]:
        """The same label for every row."""
        return [self._label] * len(frame)


class LexicalOverlap:
    """The share of the query's weighted 3-grams found in the item text, cut at thresholds fitted on training.

    The weights are inverse document frequencies over training items; the cuts are those of a decision tree
    with at most four leaves.
    """

    name = "lexical overlap"

    def fit(self, train: pd.DataFrame) -> "LexicalOverlap":
        """Weigh the 3-grams, then place the cuts."""
        _check(train)
        self._grams = _trigrams(binary=True, norm=None).fit(train["item_text"])
        self._cuts = DecisionTreeClassifier(max_leaf_nodes=4, random_state=0)
        self._cuts.fit(self.overlap(train), train["label"])
        return self

    def overlap(self, frame: pd.DataFrame) -> Any:
        """Overlap in [0, 1] per row, (rows, 1)."""
        query = self._grams.transform(frame["query"])
        held = query.multiply(self._grams.transform(frame["item_text"]) > 0)
        found, asked = (np.asarray(part.sum(axis=1)).reshape(-1, 1) for part in (held, query))
        return np.divide(found, asked, out=np.zeros_like(found), where=asked > 0)

    def predict(self, frame: pd.DataFrame) -> list[str]:
        """The label of the overlap's interval, per row."""
        return [str(label) for label in self._cuts.predict(self.overlap(frame))]


class TfidfLogistic:
    """Logistic regression over the TF-IDF 3-grams of the query, of the item, and of what they share."""

    name = "TF-IDF + logistic regression"

    def fit(self, train: pd.DataFrame) -> "TfidfLogistic":
        """Learn the vocabulary from both texts, then the weights."""
        _check(train)
        self._grams = _trigrams(sublinear_tf=True).fit(pd.concat([train["query"], train["item_text"]]))
        self._model = LogisticRegression(max_iter=1000)
        self._model.fit(self._features(train), train["label"])
        return self

    def _features(self, frame: pd.DataFrame) -> Any:
        query, item = self._grams.transform(frame["query"]), self._grams.transform(frame["item_text"])
        shared = query.multiply(item)
        return csr_matrix(hstack([query, item, shared, csr_matrix(shared.sum(axis=1))]))

    def predict(self, frame: pd.DataFrame) -> list[str]:
        """The most probable label per row."""
        return [str(label) for label in self._model.predict(self._features(frame))]


def baselines() -> list[Baseline]:
    """One unfitted judge of each kind, simplest first."""
    return [MajorityLabel(), LexicalOverlap(), TfidfLogistic()]


def _trigrams(**options: Any) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), **options)


def _check(train: pd.DataFrame) -> None:
    missing = {"query", "item_text", "label"} - set(train.columns)
    if missing or train.empty:
        raise DataError(
            f"cannot fit a baseline on {len(train)} rows with columns {list(train.columns)}; "
            "give at least 1 row of query, item_text, label."
        )
