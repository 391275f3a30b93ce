"""Trivial judges: what they learn, and what they refuse."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lore_lib.errors import DataError, EngineError
from lore_lib.rair import baselines as judges
from lore_lib.rair.baselines import (
    EmbeddingCosine,
    GradientBoosting,
    LexicalOverlap,
    MajorityLabel,
    TfidfLogistic,
    baselines,
)

COLOURS, THINGS = ["red", "navy", "olive", "mint"], ["dress", "rug", "boots", "lamp"]


def texts(count: int, seed: int) -> pd.DataFrame:
    """L4: both words match; L2: the thing only; L1: neither."""
    rng = np.random.default_rng(seed)
    rows = []
    for label in rng.choice(["L1", "L2", "L4"], count, p=[0.2, 0.3, 0.5]):
        colour, thing = rng.choice(4), rng.choice(4)
        other_colour, other_thing = (colour + rng.integers(1, 4)) % 4, (thing + rng.integers(1, 4)) % 4
        shown = {"L4": (colour, thing), "L2": (other_colour, thing), "L1": (other_colour, other_thing)}[label]
        item = f"new {COLOURS[shown[0]]} {THINGS[shown[1]]} fast shipping"
        rows.append({"query": f"{COLOURS[colour]} {THINGS[thing]}", "item_text": item, "label": label})
    return pd.DataFrame(rows)


def test_baselines_learn_what_they_can() -> None:
    train, test = texts(400, 0), texts(200, 1)
    share = {}
    for judge in baselines():
        predicted = judge.fit(train).predict(test[["query", "item_text"]])
        assert len(predicted) == 200
        assert set(predicted) <= {"L1", "L2", "L4"}
        share[judge.name] = np.mean(np.array(predicted) == test["label"])
    majority = (test["label"] == "L4").mean()
    assert share[MajorityLabel.name] == majority
    assert share[LexicalOverlap.name] > majority + 0.3
    assert share[TfidfLogistic.name] > majority + 0.2
    assert share[GradientBoosting.name] > majority + 0.3


def test_overlap_is_one_for_a_copy_and_nought_for_strangers() -> None:
    judge = LexicalOverlap().fit(texts(50, 0))
    frame = pd.DataFrame(
        {"query": ["red dress", "zzz", "red dress"], "item_text": ["red dress", "red dress", "ooo"]}
    )
    assert judge.overlap(frame).ravel().tolist() == [1, 0, 0]


def test_majority_breaks_ties_downwards() -> None:
    train = pd.DataFrame({"query": ["a", "a"], "item_text": ["b", "b"], "label": ["L4", "L2"]})
    assert MajorityLabel().fit(train).predict(train) == ["L2", "L2"]


def test_scripts_without_spaces_need_no_tokenizer() -> None:
    train = pd.DataFrame(
        {
            "query": ["红色连衣裙"] * 2,
            "item_text": ["新款红色连衣裙包邮", "电饭煲不粘锅"],
            "label": ["L4", "L1"],
        }
    )
    assert LexicalOverlap().fit(train).predict(train) == ["L4", "L1"]


def test_fitting_on_nothing_is_refused() -> None:
    for judge in baselines():
        with pytest.raises(DataError, match="query, item_text, label"):
            judge.fit(texts(3, 0).drop(columns="label"))


class Letters:
    """An encoder of two letters: how often "a" and "b" stand in a text."""

    name = "letters"

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.encoded += texts
        counts = np.array([[text.count("a"), text.count("b")] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_cosine_cuts_nearness_of_meaning_and_encodes_equal_texts_once() -> None:
    rows = [("aa", "aa", "L4"), ("aa", "bb", "L1"), ("ab", "aab", "L3"), ("bb", "bb", "L4")] * 5
    train = pd.DataFrame(rows, columns=["query", "item_text", "label"])
    encoder = Letters()
    judge = EmbeddingCosine(encoder, pairs=20).fit(train)  # type: ignore[arg-type]
    assert sorted(encoder.encoded) == ["aa", "aa", "aab", "ab", "bb", "bb"]
    asked = pd.DataFrame({"query": ["bbb", "bbb"], "item_text": ["b", "a"]})
    assert judge.cosine(asked).ravel().tolist() == [1, 0]
    assert judge.predict(asked) == ["L4", "L1"]


def test_cosine_learns_from_as_many_pairs_as_it_is_told() -> None:
    rows = [(f"a{'b' * n}", "ab", "L4" if n % 2 else "L1") for n in range(100)]
    encoder = Letters()
    EmbeddingCosine(encoder, pairs=10).fit(  # type: ignore[arg-type]
        pd.DataFrame(rows, columns=["query", "item_text", "label"])
    )
    assert len(encoder.encoded) == 10 + 1


def test_the_bundled_encoder_is_found_or_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "ENCODER_PACKAGE", "no_such_encoder")
    with pytest.raises(EngineError, match=r"\[encoder\]"):
        baselines("bundled")
    package = tmp_path / "an_encoder"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "config.json").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(judges, "ENCODER_PACKAGE", "an_encoder")
    importlib.invalidate_caches()
    assert judges.bundled_encoder() == str(package / "model")
    assert EmbeddingCosine.name in [judge.name for judge in baselines("bundled")]
    assert EmbeddingCosine.name not in [judge.name for judge in baselines()]
