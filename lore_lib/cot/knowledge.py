"""The knowledge stage: what clicked items' selling points say about a query's unknown words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import bm25s
import pandas as pd

_EXPLAINED = re.compile(r"([^;()]+?) \(([^()]+)\)")


class KnowledgeIndex:
    """Retrieves selling points for a query: from its top-clicked items first, by BM25 over all otherwise.

    Args:
        items: table ``items`` (item_id, title, selling_points).
        clicks: table ``clicks`` (query_id, item_id, clicks).
        top_clicked: number of clicked items read per query.
        selling_points: number of further items that BM25 may add when the clicks do not explain a word.
    """

    def __init__(
        self, items: pd.DataFrame, clicks: pd.DataFrame, top_clicked: int, selling_points: int
    ) -> None:
        self._points = dict(zip(items.item_id, items.selling_points, strict=True))
        self._clicked: dict[str, list[str]] = defaultdict(list)
        ranked = clicks.sort_values(["clicks", "item_id"], ascending=[False, True])
        for query_id, item_id in zip(ranked.query_id, ranked.item_id, strict=True):
            self._clicked[query_id].append(item_id)
        self._top_clicked, self._extra = top_clicked, selling_points
        told = [item_id for item_id, text in self._points.items() if text]
        self._told = told
        self._bm25 = bm25s.BM25()
        if told:
            texts = [self._points[item_id] for item_id in told]
            self._bm25.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)

    def evidence(self, query_id: str, words: list[str], exclude_item: str = "") -> list[str]:
        """Selling points that may explain ``words``, best first.

        Args:
            query_id: the query.
            words: its unknown words.
            exclude_item: the judged item, so that a pair never supports itself.
        """
        clicked = [i for i in self._clicked.get(query_id, []) if i != exclude_item][: self._top_clicked]
        texts = [self._points[i] for i in clicked if self._points.get(i)]
        if self._told and not all(any(_explains(text, word) for text in texts) for word in words):
            query = bm25s.tokenize(" ".join(words), stopwords=None, show_progress=False)
            count = min(self._extra + 1, len(self._told))
            found, scores = self._bm25.retrieve(query, k=count, show_progress=False)
            hits = [self._told[i] for i, score in zip(found[0], scores[0], strict=True) if score > 0]
            texts += [self._points[i] for i in hits if i != exclude_item][: self._extra]
        return texts

    def explain(self, query_id: str, words: list[str], exclude_item: str = "") -> dict[str, str]:
        """Word -> the meaning most selling points give it; words without evidence are left out."""
        votes: dict[str, Counter[str]] = {word: Counter() for word in words}
        for text in self.evidence(query_id, words, exclude_item) if words else []:
            for surface, meaning in _EXPLAINED.findall(text):
                if surface.strip() in votes:
                    votes[surface.strip()][meaning] += 1
        return {word: count.most_common(1)[0][0] for word, count in votes.items() if count}


def _explains(text: str, word: str) -> bool:
    return any(surface.strip() == word for surface, _ in _EXPLAINED.findall(text))
