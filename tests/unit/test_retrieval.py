"""Rankings: BM25 equals its formula and its library, vectors are searched exactly, fusion by hand."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, BertTokenizer

import lore_lib.cot.retrieval as retrieval
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.retrieval import Bm25, Dense, Encoder, Hybrid, Rows
from lore_lib.errors import EngineError
from tests.unit.test_knowledge import POINTS, clicks_of, items_of

words = st.lists(st.sampled_from(["mint", "Navy", "dress", "x", "抹茶", "(", ""]), max_size=5).map(" ".join)


def bm25(texts: Sequence[str], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25, from its definition."""
    documents = [re.findall(r"\w+", text.lower()) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = [0.0] * len(texts)
    for word in re.findall(r"\w+", query.lower()):
        having = sum(word in document for document in documents)
        weight = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        for at, document in enumerate(documents):
            if count := Counter(document)[word]:
                scores[at] += weight * count / (count + k1 * (1 - b + b * len(document) / mean))
    return scores


@given(
    texts=st.lists(words, min_size=1, max_size=12), queries=st.lists(words, max_size=4), k=st.integers(0, 13)
)
@settings(max_examples=40)
def test_bm25_is_its_formula(texts: list[str], queries: list[str], k: int) -> None:
    found = Bm25.build(iter(texts)).top(queries, k)
    assert len(found) == len(queries)
    for query, rows in zip(queries, found, strict=True):
        scores = bm25(texts, query)
        assert len(rows) == min(k, sum(score > 0 for score in scores))
        assert [scores[row] for row in rows] == pytest.approx(sorted(scores, reverse=True)[: len(rows)])


def test_equal_scores_stand_in_the_order_of_rows() -> None:
    rows = Bm25.build(["mint", "navy", "mint", "mint navy", "mint"]).top(["mint", "navy"], 2)
    assert [row.tolist() for row in rows] == [[0, 2], [1, 3]]


def test_a_bounded_number_of_postings_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Bm25.build([f"mint {n % 7} x{n % 3}" for n in range(50)])
    queries = ["mint", "x1 3", "unheard", "", "2 mint", "x0"]
    whole = made.top(queries, 9)
    monkeypatch.setattr(retrieval, "_POSTINGS_AT_ONCE", 20)
    assert all(map(np.array_equal, made.top(queries, 9), whole))


def test_the_scores_are_those_of_bm25s(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 30, 6)) for _ in range(200)]
    made = Bm25.build(texts)
    made.save(tmp_path)
    library = bm25s.BM25.load(tmp_path, show_progress=False)
    for query in ("w1 w2", "w3", "w4 w5 w6 w7"):
        rows = made.top([query], 10)[0]
        scores = library.get_scores(query.split())
        assert scores[rows].tolist() == sorted(scores, reverse=True)[:10]


class Letters(Encoder):
    """A text's vector counts its letters a, b and c."""

    def encode(self, texts: Sequence[str]) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32).reshape(
            -1, 3
        )


@given(
    texts=st.lists(st.text("abc", max_size=4), max_size=20),
    queries=st.lists(st.text("abc", max_size=3), max_size=3),
    k=st.integers(0, 21),
    rows_at_once=st.integers(1, 8),
)
@settings(max_examples=40)
def test_dense_search_is_exact_in_blocks_of_any_size(
    texts: list[str], queries: list[str], k: int, rows_at_once: int
) -> None:
    encoder = Letters("letters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_ROWS_AT_ONCE", rows_at_once)
        found = Dense.build(encoder, texts).top(queries, k)
    scores = encoder.encode(queries) @ encoder.encode(texts).T
    for rows, near in zip(found, scores, strict=True):
        assert rows.tolist() == np.lexsort((np.arange(len(near)), -near))[:k].tolist()


class Fixed:
    """Always the same rows."""

    def __init__(self, *rows: int) -> None:
        self._rows = np.array(rows)

    def top(self, queries: Sequence[str], k: int) -> list[Rows]:
        return [self._rows[:k] for _ in queries]


def test_fusion_by_hand() -> None:
    """1/61 + 1/63 for row 7, 1/62 + 1/61 for row 3, 1/63 for row 5, 1/62 for row 9."""
    both = Hybrid([Fixed(7, 3, 5), Fixed(3, 9, 7)])
    assert [rows.tolist() for rows in both.top(["x", "y"], 4)] == [[3, 7, 9, 5]] * 2
    assert both.top(["x"], 2)[0].tolist() == [3, 7]
    assert Hybrid([Fixed(), Fixed()]).top(["x"], 2)[0].tolist() == []


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random BERT of one layer."""
    folder = tmp_path_factory.mktemp("tiny-encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"();", "matcha", "mint", "frock", "dress"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    return str(folder)


def test_a_vector_has_length_1_and_does_not_depend_on_its_neighbours(
    tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(tiny_encoder, "cpu")
    texts = ["mint", "matcha (mint); frock (dress)", "", "dress " * 100]
    together = encoder.encode(texts)
    assert together.shape == (4, 8)
    assert together.dtype == np.float32
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert np.concatenate([encoder.encode([text]) for text in texts]) == pytest.approx(together, abs=1e-6)
    monkeypatch.setattr(retrieval, "_TEXTS_AT_ONCE", 3)
    assert encoder.encode(texts) == pytest.approx(together, abs=1e-6)
    assert encoder.encode([]).shape == (0, 8)


def test_a_vector_is_the_mean_over_the_tokens(tiny_encoder: str) -> None:
    encoder = Encoder(tiny_encoder, "cpu")
    model, tokenizer = encoder._parts
    with torch.inference_mode():
        hidden = model(**tokenizer("matcha mint", return_tensors="pt")).last_hidden_state[0].mean(0)
    assert encoder.encode(["matcha mint"])[0] == pytest.approx((hidden / hidden.norm()).numpy(), abs=1e-6)


@pytest.mark.parametrize("how", ["dense", "hybrid"])
def test_an_index_searched_by_meaning_is_saved_and_loaded(
    how: retrieval.Any, tiny_encoder: str, tmp_path: Path
) -> None:
    made = KnowledgeIndex(items_of(POINTS), clicks_of([]), 5, 2, retrieval=how, encoder=tiny_encoder)
    found = made.evidence("q", ["matcha"])
    assert len(found) == 2
    assert made.reading(0, 4).evidence("q", ["matcha"]) == [
        POINTS[item] for item in "ade"
    ]  # BM25 stays at hand
    assert len(made.reading(0, 9, how).evidence("q", ["matcha"])) == 4  # vectors place every text
    made.save(tmp_path)
    assert KnowledgeIndex.load(tmp_path).evidence("q", ["matcha"]) == found
    assert KnowledgeIndex.load(tmp_path, mmap=False).evidence("q", ["matcha"]) == found


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"no sentence encoder at '{tmp_path}'"):
        Encoder(str(tmp_path)).encode(["x"])
