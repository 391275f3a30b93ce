"""Rankings of short texts for a query: by words (BM25), by meaning (an encoder), or by both."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import bm25s
import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from lore_lib.artifacts import atomic_write, explain_disk, project_root, put_in_place
from lore_lib.device import resolve_device
from lore_lib.errors import EngineError

Rows = NDArray[np.int64]
"""Rows of texts, best first."""

RRF_K = 60
"""Constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""

_TOKEN = re.compile(r"\w+")
_POSTINGS_AT_ONCE = 1 << 22  # of BM25: 50 MB of scores
_ROWS_AT_ONCE = 1 << 16  # of the vectors, per product
_TEXTS_AT_ONCE = 256  # encoded at a time
_LONGEST = 512  # tokens of a text that are encoded, fewer where the tokenizer says so


class Ranking(Protocol):
    """An order of all texts for a query."""

    def top(self, queries: Sequence[str], k: int) -> list[Rows]:
        """The k best rows for each query, equal ones in the order of rows; fewer when no more are found."""


class Bm25:
    """BM25 as Lucene scores it (Kamphuis et al., ECIR 2020; k1 1.5, b 0.75), from an index of bm25s.

    bm25s computes every score at build time, saves the index and maps it into memory. A batch of queries is
    then one product of sparse matrices, which reads only the texts that share a word with a query. Its own
    retrievers are not used (``benchmarks/bench_knowledge.py``): they give the same scores, but of texts that
    score alike, as short ones often do, they keep others than the first, and others again for another k,
    and so different texts would be evidence. The numba one would be twice as fast, after six seconds of
    compiling in every process, and a synthesis searches for less than that; the NumPy one is far slower.
    """

    def __init__(self, index: bm25s.BM25) -> None:
        scores, words = index.scores, len(index.vocab_dict)
        self._index, self._vocabulary = index, index.vocab_dict
        self._scores = sparse.csr_matrix(
            (scores["data"], scores["indices"], scores["indptr"]), shape=(words, scores["num_docs"])
        )  # bm25s has texts x words by columns, which is words x texts by rows

    @classmethod
    def build(cls, texts: Iterable[str]) -> Bm25:
        """Index texts, reading them once."""
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(token, len(vocabulary)) for token in _tokens(text)] for text in texts]
        index = bm25s.BM25()
        if vocabulary:
            index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        else:
            index.vocab_dict, index.nonoccurrence_array = {}, None
            none = {"data": np.float32, "indices": np.int32, "indptr": np.int64}
            index.scores = {name: np.zeros(int(name == "indptr"), kind) for name, kind in none.items()}
            index.scores["num_docs"] = len(ids)
        return cls(index)

    def top(self, queries: Sequence[str], k: int) -> list[Rows]:
        """Rows of the texts that share a word with the query."""
        asked = [[self._vocabulary[t] for t in _tokens(query) if t in self._vocabulary] for query in queries]
        indptr = self._scores.indptr
        found: list[Rows] = []
        for part in _portions(asked, [sum(int(indptr[t + 1] - indptr[t]) for t in ids) for ids in asked]):
            ends = np.cumsum([0, *map(len, part)])
            words = np.array([token for ids in part for token in ids], np.int32)
            shape = (len(part), self._scores.shape[0])
            scores = sparse.csr_matrix((np.ones(len(words), np.float32), words, ends), shape) @ self._scores
            for start, end in zip(scores.indptr, scores.indptr[1:], strict=False):
                found.append(_best(scores.indices[start:end], scores.data[start:end], k))
        return found

    def save(self, folder: Path) -> list[Path]:
        """Write the files of bm25s into ``folder``, each whole or not at all; returns their paths."""
        with explain_disk(folder), tempfile.TemporaryDirectory(prefix=".bm25-", dir=folder) as scratch:
            self._index.save(scratch, show_progress=False)
            names = sorted(path.name for path in Path(scratch).iterdir())
            for name in names:
                put_in_place(Path(scratch) / name, folder / name)
        return [folder / name for name in names]

    @classmethod
    def load(cls, folder: Path, mmap: bool = True) -> Bm25:
        """Open what :meth:`save` wrote."""
        return cls(bm25s.BM25.load(folder, mmap=mmap, show_progress=False))


class Encoder:
    """A sentence embedding: mean of the last hidden states over the text's tokens, of length 1.

    This is how most models of sentence-transformers pool (Reimers and Gurevych, EMNLP 2019).

    Args:
        model: folder (under the project root or anywhere) or hub name of any encoder that transformers loads.
        device: "auto", "cpu", "cuda" or "mps".
    """

    def __init__(self, model: str, device: str = "auto") -> None:
        self.name, self._device = model, device

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer  # seconds to import, and BM25 needs none of it

        folder = project_root() / self.name
        where = str(folder) if folder.is_dir() else self.name
        try:
            model, tokenizer = AutoModel.from_pretrained(where), AutoTokenizer.from_pretrained(where)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"no sentence encoder at {self.name!r}: {error}. Give a local folder or a reachable hub name."
            ) from error
        return model.to(resolve_device(self._device)).eval(), tokenizer

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts, float32 [texts, dimensions].

        Raises:
            EngineError: the model cannot be loaded.
        """
        import torch

        model, tokenizer = self._parts
        longest = min(tokenizer.model_max_length, _LONGEST)
        vectors = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = list(texts[start : start + _TEXTS_AT_ONCE])
            batch = tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            batch = batch.to(model.device)
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            read = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * read).sum(1) / read.sum(1)
            vectors.append(torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy())
        return np.concatenate(vectors) if vectors else np.empty((0, model.config.hidden_size), np.float32)


class Dense:
    """Exact search by inner product of sentence vectors, in blocks.

    A query costs a pass over all vectors: fine to about 10^6 texts. Beyond, take an approximate index, such
    as HNSW or IVF-PQ of faiss; it only has to offer :meth:`top`.

    Args:
        encoder: of the queries, and earlier of the texts.
        vectors: of the texts, float32 [texts, dimensions].
    """

    def __init__(self, encoder: Encoder, vectors: NDArray[np.float32]) -> None:
        self.encoder, self._vectors = encoder, vectors

    @classmethod
    def build(cls, encoder: Encoder, texts: Sequence[str]) -> Dense:
        """Encode the texts."""
        return cls(encoder, encoder.encode(texts))

    def top(self, queries: Sequence[str], k: int) -> list[Rows]:
        """The rows with the nearest vectors."""
        asked = self.encoder.encode(queries)
        rows: list[Rows] = [np.empty(0, np.int64) for _ in queries]
        scores = [np.empty(0, np.float32) for _ in queries]
        for start in range(0, len(self._vectors), _ROWS_AT_ONCE):
            block = asked @ self._vectors[start : start + _ROWS_AT_ONCE].T
            for at, near in enumerate(block):
                best = _best(np.arange(len(near)), near, k)
                joined, values = np.append(rows[at], best + start), np.append(scores[at], near[best])
                order = np.lexsort((joined, -values))[:k]
                rows[at], scores[at] = joined[order], values[order]
        return rows

    def save(self, path: Path) -> Path:
        """Write the vectors, whole or not at all; returns the path."""

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.save(file, self._vectors)

        return atomic_write(path, write)

    @classmethod
    def load(cls, encoder: Encoder, path: Path, mmap: bool = True) -> Dense:
        """Open what :meth:`save` wrote."""
        return cls(encoder, np.load(path, mmap_mode="r" if mmap else None))


class Hybrid:
    """Reciprocal rank fusion: a row scores the sum of 1 / (60 + its rank) over the rankings."""

    def __init__(self, rankings: Sequence[Ranking]) -> None:
        self._rankings = rankings

    def top(self, queries: Sequence[str], k: int) -> list[Rows]:
        """The rows that the rankings place highest together, each read down to its k-th row."""
        return [
            _fused(rows, k) for rows in zip(*(one.top(queries, k) for one in self._rankings), strict=True)
        ]


def _fused(rankings: Sequence[Rows], k: int) -> Rows:
    rows, place = np.unique(np.concatenate(rankings), return_inverse=True)
    worth = np.concatenate([1 / (RRF_K + 1 + np.arange(len(ranked))) for ranked in rankings])
    return _best(rows, np.bincount(place, worth, len(rows)), k)


def _best(rows: NDArray[np.integer[Any]], scores: NDArray[Any], k: int) -> Rows:
    """The k rows of the highest scores; equal scores in the order of rows."""
    if 0 < k < len(rows):
        near = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
        rows, scores = rows[near], scores[near]
    return rows[np.lexsort((rows, -scores))][:k].astype(np.int64)


def _portions(asked: Sequence[list[int]], postings: Sequence[int]) -> Iterator[list[list[int]]]:
    """Neighbouring queries together, as many as read a bounded number of postings."""
    part: list[list[int]] = []
    room = _POSTINGS_AT_ONCE
    for ids, cost in zip(asked, postings, strict=True):
        if part and cost > room:
            yield part
            part, room = [], _POSTINGS_AT_ONCE
        part.append(ids)
        room -= cost
    if part:
        yield part


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())
