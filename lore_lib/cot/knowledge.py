"""The knowledge stage: what clicked items' selling points say about a query's unknown words.

**Whom to believe.** Selling points are written by sellers, and a seller may claim anything. So each shop has
one voice: one text per shop is read, and one vote per shop and word is counted. Two shops that agree settle a
word; until then the whole catalogue is asked, and most votes win (of equal ones, the better placed). A lie
wins only where lying shops are the majority of those read; a seller with many shops has many voices.

**What would leak.** A chain must not know more of its pair than the prompt does, and nothing that is trained
on may know the pairs it is judged on. Hence

* the judged item is never evidence for its own pair: neither its click, which tells its label, nor its
  selling points, which tell its attributes, nor the same text on another item of its shop (most often the
  same product);
* an item of a dev or test pair is never evidence at all: built with ``held_out=held_out_items(pairs)``, the
  index has neither its selling points nor any click on it, whatever the query.

Two things stay, on purpose: clicks of a test query on items that nobody judged (a search engine has them as
well), and the judged item's words in the catalogue's word counts, from which BM25 takes its weights.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import pandas as pd

from lore_lib.artifacts import atomic_write_json
from lore_lib.config import CotConfig, Retrieval
from lore_lib.cot.retrieval import Bm25, Dense, Encoder, Hybrid, Ranking
from lore_lib.cot.selling_points import Rows, SellingPoints
from lore_lib.errors import ArtifactError, ConfigError

QUORUM = 2
"""Shops that must agree on a word's meaning before the clicks alone settle it."""

INDEX, VECTORS = "index.json", "vectors.npy"
SCHEMA_VERSION = 1

_PARTS = re.compile(r"([;()])")


class Ask(NamedTuple):
    """What a pair wants to know.

    Attributes:
        query_id: the query.
        words: its unknown words or phrases.
        exclude_item: the judged item, so that a pair never supports itself.
    """

    query_id: str
    words: Sequence[str]
    exclude_item: str = ""


class KnowledgeIndex:
    """Retrieves selling points for queries: of the top-clicked items, then from the whole catalogue.

    Building reads every row once; :meth:`save` and :meth:`load` spare the next process that.

    Args:
        items: item_id, selling_points and, where there is one, shop: a frame or a stream of record batches.
            Without shops every item has its own voice.
        clicks: query_id, item_id, clicks: a frame or a stream of record batches.
        top_clicked: shops whose most clicked text is read per query.
        selling_points: shops that the whole catalogue may add where the clicks do not settle a word.
        held_out: items that may not be evidence, see :func:`held_out_items`.
        retrieval: how the catalogue is searched: "bm25" by words, "dense" by meaning, "hybrid" by both.
        encoder: folder or hub name of the sentence encoder that "dense" and "hybrid" need.

    Raises:
        ConfigError: ``retrieval`` needs an encoder and has none.
        DataError: a column is missing, an item_id comes back.
        EngineError: no such encoder.
    """

    def __init__(
        self,
        items: Rows,
        clicks: Rows,
        top_clicked: int,
        selling_points: int,
        held_out: Collection[str] = (),
        retrieval: Retrieval = "bm25",
        encoder: str = "",
    ) -> None:
        self._points = SellingPoints.build(items, clicks, held_out)
        texts = self._points.texts.column("text")
        self._bm25 = Bm25.build(text.as_py() for text in texts)
        meant = encoder and retrieval != "bm25"
        self._dense = Dense.build(Encoder(encoder), texts.to_pylist()) if meant else None
        self._read(top_clicked, selling_points, retrieval)

    @classmethod
    def of(cls, tables: Mapping[str, pd.DataFrame], cot: CotConfig) -> Self:
        """The index of a run: nothing of a dev or test pair's item is in it.

        Args:
            tables: items, clicks and pairs.
            cot: settings.
        """
        held_out = held_out_items(tables["pairs"])
        depths = cot.top_clicked, cot.selling_points
        return cls(tables["items"], tables["clicks"], *depths, held_out, cot.retrieval, cot.encoder)

    def _read(self, top_clicked: int, selling_points: int, retrieval: Retrieval) -> None:
        if retrieval != "bm25" and self._dense is None:
            raise ConfigError(f"retrieval {retrieval!r} needs a sentence encoder; name one, or use 'bm25'")
        self._top_clicked, self._selling_points, self._retrieval = top_clicked, selling_points, retrieval
        self._shops = self._points.shops
        rankings = [ranking for ranking in (self._bm25, self._dense) if ranking is not None]
        self._ranking: Ranking = Hybrid(rankings) if retrieval == "hybrid" else rankings[retrieval == "dense"]

    def reading(self, top_clicked: int, selling_points: int, retrieval: Retrieval = "bm25") -> Self:
        """The same index, read to other depths or searched in another way; nothing is copied.

        Raises:
            ConfigError: the index was built without the vectors that ``retrieval`` needs.
        """
        other = copy.copy(self)
        other._read(top_clicked, selling_points, retrieval)
        return other

    def save(self, folder: Path) -> None:
        """Write the index into ``folder``, ``index.json`` last: where it stands, the index is whole."""
        (folder / INDEX).unlink(missing_ok=True)
        files = [*self._points.save(folder), *self._bm25.save(folder)]
        if self._dense is not None:
            files.append(self._dense.save(folder / VECTORS))
        record = {
            "schema_version": SCHEMA_VERSION,
            "top_clicked": self._top_clicked,
            "selling_points": self._selling_points,
            "retrieval": self._retrieval,
            "encoder": self._dense.encoder.name if self._dense is not None else "",
            "bytes": {path.name: path.stat().st_size for path in files},
        }
        atomic_write_json(folder / INDEX, record)

    @classmethod
    def load(cls, folder: Path, mmap: bool = True) -> Self:
        """Open what :meth:`save` wrote; with ``mmap`` a page is read from the disk when it is first needed.

        Raises:
            ArtifactError: there is no whole index, or it is of another version.
        """
        record = _record(folder)
        index = cls.__new__(cls)
        index._points = SellingPoints.load(folder, mmap)
        index._bm25 = Bm25.load(folder, mmap)
        encoder = record["encoder"]
        index._dense = Dense.load(Encoder(encoder), folder / VECTORS, mmap) if encoder else None
        index._read(record["top_clicked"], record["selling_points"], record["retrieval"])
        return index

    def evidence(self, query_id: str, words: Sequence[str], exclude_item: str = "") -> list[str]:
        """Selling points that may explain ``words``, best first.

        Args:
            query_id: the query.
            words: its unknown words.
            exclude_item: the judged item, so that a pair never supports itself.
        """
        return self.evidence_many([Ask(query_id, words, exclude_item)])[0]

    def evidence_many(self, asks: Sequence[Ask]) -> list[list[str]]:
        """:meth:`evidence` for many pairs, which costs far less than one by one."""
        return [[self._points.text(row) for row in rows] for rows in self._rows(asks)]

    def explain(self, query_id: str, words: Sequence[str], exclude_item: str = "") -> dict[str, str]:
        """Word -> the meaning most shops give it; words without evidence are left out."""
        return self.explain_many([Ask(query_id, words, exclude_item)])[0]

    def explain_many(self, asks: Sequence[Ask]) -> list[dict[str, str]]:
        """:meth:`explain` for many pairs."""
        asked = [ask if ask.words else None for ask in asks]
        rows = iter(self._rows([ask for ask in asked if ask]))
        return [
            {
                word: count.most_common(1)[0][0]
                for word, count in self._votes(next(rows), ask.words).items()
                if count
            }
            if ask
            else {}
            for ask in asked
        ]

    def _rows(self, asks: Sequence[Ask]) -> list[list[int]]:
        """Rows of the texts that are evidence for each pair, best first."""
        found: list[list[int]] = []
        searches: list[_Search] = []
        for ask in asks:
            own = self._points.row_of(ask.exclude_item)
            hidden = set() if own is None else {own}
            clicked = self._one_per_shop(self._points.clicked(ask.query_id), hidden, self._top_clicked)
            found.append(clicked)
            votes = self._votes(clicked, ask.words)
            open_words = [word for word in ask.words if max(votes[word].values(), default=0) < QUORUM]
            if open_words and self._selling_points:
                searches.append(_Search(" ".join(open_words), hidden | set(clicked), clicked))
        self._search(searches)
        return found

    def _search(self, searches: list[_Search]) -> None:
        """Add to each search's evidence the best text of each of the best shops.

        Texts of few shops may fill the top of a ranking, so it is read on until it holds enough shops.
        """
        depth = 4 * (self._selling_points + 1)
        while searches:
            ranked = self._ranking.top([search.text for search in searches], depth)
            more = []
            for search, rows in zip(searches, ranked, strict=True):
                chosen = self._one_per_shop(rows, search.hidden, self._selling_points)
                if len(chosen) < self._selling_points and len(rows) == depth:
                    more.append(search)
                else:
                    search.evidence.extend(chosen)
            searches, depth = more, 8 * depth

    def _one_per_shop(self, rows: Iterable[int], hidden: set[int], count: int) -> list[int]:
        """The first row of each of the first ``count`` shops."""
        first: dict[int, int] = {}
        for row in map(int, rows):
            if len(first) == count:
                break
            if row not in hidden:
                first.setdefault(int(self._shops[row]), row)
        return list(first.values())

    def _votes(self, rows: Iterable[int], words: Iterable[str]) -> dict[str, Counter[str]]:
        """How many shops give each word each meaning; a shop says what its best placed text says."""
        said: dict[str, dict[int, str]] = {word.casefold(): {} for word in words}
        for row in rows:
            for surface, meaning in explanations(self._points.text(row)):
                if surface.casefold() in said:
                    said[surface.casefold()].setdefault(int(self._shops[row]), meaning)
        return {word: Counter(said[word.casefold()].values()) for word in words}


class _Search(NamedTuple):
    """A search of the whole catalogue for one pair.

    Attributes:
        text: the words to search for.
        hidden: rows that may not be found.
        evidence: the list that takes the rows.
    """

    text: str
    hidden: set[int]
    evidence: list[int]


@functools.lru_cache(maxsize=1 << 14)
def explanations(text: str) -> tuple[tuple[str, str], ...]:
    """What a selling point explains, "word (meaning)", in time linear in its length.

    >>> explanations("soft feel; matcha (mint); latte (camel)")
    (('matcha', 'mint'), ('latte', 'camel'))
    """
    parts = _PARTS.split(text)
    return tuple(
        (before.strip(), meaning.strip())
        for before, opened, meaning, closed in zip(
            parts[::2], parts[1::2], parts[2::2], parts[3::2], strict=False
        )
        if (opened, closed) == ("(", ")") and before.endswith(" ") and before.strip() and meaning.strip()
    )


def held_out_items(pairs: pd.DataFrame) -> set[str]:
    """Items judged in a dev or test pair, those that a train pair has as well included.

    Args:
        pairs: item_id, split.
    """
    return set(pairs.item_id[pairs.split != "train"])


def explanation_recall(
    index: KnowledgeIndex,
    asked: pd.DataFrame,
    lexicon: Mapping[str, str],
    depths: Sequence[int] = (1, 3, 5),
    retrieval: Retrieval = "bm25",
) -> pd.DataFrame:
    """Whether retrieval finds the explanation that a query needs, where the truth is known.

    Args:
        index: the index.
        asked: pairs with query_id, query (its text), item_id (left out of the evidence), and any columns to
            group by, such as intent or kind.
        lexicon: slang -> its true meaning.
        depths: numbers k of texts read from each source.
        retrieval: how the catalogue is searched.

    Returns:
        The rows of ``asked`` whose query has slang, repeated for each ``source`` ("clicks", "catalogue",
        "both": the catalogue where the clicks do not settle a word) and each ``k``, with ``held`` (each slang
        word of the query is truly explained by some text read) and ``right`` (so says the majority, too).
        Pairs of one query hang together: take intervals over queries.
    """
    texts = asked["query"].map(lambda text: f" {text.casefold()} ")
    needs = [
        {slang: lexicon[slang] for slang in lexicon if f" {slang.casefold()} " in text} for text in texts
    ]
    rows = asked[[bool(need) for need in needs]]
    needs = [need for need in needs if need]
    asks = [Ask(q, list(need), i) for q, i, need in zip(rows.query_id, rows.item_id, needs, strict=True)]
    frames = []
    for k in depths:
        for source, (clicked, searched) in {"clicks": (k, 0), "catalogue": (0, k), "both": (k, k)}.items():
            view = index.reading(clicked, searched, retrieval)
            told = [
                {pair for text in texts for pair in explanations(text)} for texts in view.evidence_many(asks)
            ]
            held = [need.items() <= pairs for need, pairs in zip(needs, told, strict=True)]
            right = [said == need for said, need in zip(view.explain_many(asks), needs, strict=True)]
            frames.append(rows.assign(source=source, k=k, held=held, right=right))
    return pd.concat(frames, ignore_index=True)


def _record(folder: Path) -> dict[str, Any]:
    """The checked contents of ``index.json``."""
    path = folder / INDEX
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"no whole knowledge index in {folder} ({error}); build and save it again"
        ) from error
    if record.get("schema_version") != SCHEMA_VERSION:
        found = record.get("schema_version")
        raise ArtifactError(f"{path} has schema_version {found}, not {SCHEMA_VERSION}; build the index again")
    sizes = {
        name: file.stat().st_size if (file := folder / name).is_file() else None for name in record["bytes"]
    }
    if wrong := [
        f"{name} has {sizes[name]} of {size} bytes"
        for name, size in record["bytes"].items()
        if sizes[name] != size
    ]:
        raise ArtifactError(f"{folder}: {'; '.join(wrong)}; build the index again")
    return record
