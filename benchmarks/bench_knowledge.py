"""The knowledge index at rising sizes: building, saving, loading and searching it, and what it may miss.

    python benchmarks/bench_knowledge.py [--largest 1000000]

Items of the bundled world, each with an article number in its text (so that no two are kept as one, the worst
case), of 1,000 shops, with ten rows of the click log each. Every size runs in a process of its own. Seconds
are of the processor, as other work stretches the wall clock; ``MiB`` is the highest resident memory so far,
tables included. ``growth`` is the slope of log seconds over log items: 1.00 is linear.

BM25 is searched for slang (few texts have the word) and for whole queries (common words), by the index's own
product of sparse matrices and by the two retrievers of bm25s; numba's compilation is timed apart. ``recall``
is the share of the ten best scores found, where all scores are computed from BM25's formula. Many short texts
score alike; ``the same`` says for how many slang words numba's retriever finds the ten texts that the index
finds, the first of equals, and in how many cases in the same order.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from ways import sizes_asked

from lore_lib.cot.knowledge import Ask, KnowledgeIndex
from lore_lib.cot.retrieval import Bm25
from lore_lib.rng import generator
from lore_lib.vertical.definition import load_vertical
from lore_lib.vertical.world import World

SHOPS, CLICKS_PER_ITEM, ITEMS_PER_QUERY, DRAWN = 1_000, 10, 10, 2_000
TOP, QUERIES, SLOW_QUERIES = 10, 1_000, 100

Row = tuple[str, int, float]
"""What was done, to how many, in how many seconds."""


def tables(items: int) -> tuple[pd.DataFrame, pd.DataFrame, list[str], list[str]]:
    """items and clicks, slang of the vertical, texts of queries."""
    vertical = load_vertical("apparel_home")
    world, rng = World(vertical), generator(17, "bench", "knowledge")
    drawn = [world.draw_query(rng) for _ in range(DRAWN)]
    points = np.array([world.draw_item(query, 4, rng).selling_points for query in drawn], dtype=object)
    ids = np.array([f"item-{n:09d}" for n in range(items)], dtype=object)
    said = points[rng.integers(0, DRAWN, items)] + np.array([f"; no{n}" for n in range(items)], dtype=object)
    shops = np.array([f"shop-{n}" for n in rng.zipf(1.5, items) % SHOPS], dtype=object)
    asked = np.array([f"query-{n:09d}" for n in range(max(1, items // ITEMS_PER_QUERY))], dtype=object)
    log = {
        "query_id": asked[rng.integers(0, len(asked), items * CLICKS_PER_ITEM)],
        "item_id": ids[rng.integers(0, items, items * CLICKS_PER_ITEM)],
        "clicks": rng.integers(1, 50, items * CLICKS_PER_ITEM),
    }
    catalogue = pd.DataFrame({"item_id": ids, "selling_points": said, "shop": shops})
    slang = [str(word) for word in rng.choice(list(vertical.lexicon), QUERIES)]
    return catalogue, pd.DataFrame(log), slang, [query.text for query in drawn[:QUERIES]]


def exact_scores(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Lucene's BM25 of every text for every query, from the formula."""
    counter = CountVectorizer(token_pattern=r"(?u)\w+")
    counts = counter.fit_transform(texts).astype(np.float64)
    length = np.asarray(counts.sum(1)).ravel()
    having = counts.getnnz(axis=0)
    weight = np.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
    asked = counter.transform(queries).sign().tocsr()
    columns = counts.tocsc()
    scores = np.zeros((len(queries), len(texts)))
    for at in range(len(queries)):
        for word in asked[at].indices:
            found, tf = columns[:, [word]].nonzero()[0], columns[:, [word]].data
            scores[at, found] += (
                weight[word] * tf / (tf + 1.5 * (0.25 + 0.75 * length[found] / length.mean()))
            )
    return scores


def recall(texts: Sequence[str], index: Bm25, queries: Sequence[str]) -> float:
    """Share of the TOP best scores that the index finds; any text of an equal score will do."""
    shares = []
    for scores, rows in zip(exact_scores(texts, queries), index.top(queries, TOP), strict=True):
        best = np.sort(scores)[::-1][:TOP]
        found = np.pad(np.sort(scores[rows])[::-1], (0, TOP - len(rows)))
        shares.append(np.isclose(found, best, atol=1e-4).mean())
    return float(np.mean(shares))


def measure(items: int, say: Callable[[Any], None]) -> None:
    """All rows of one size."""

    def timed(what: str, count: int, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        made = work()
        seconds = time.process_time() - start
        say((what, count, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return made

    catalogue, clicks, slang, queries = tables(items)
    pairs = [
        Ask(f"query-{n % max(1, items // ITEMS_PER_QUERY):09d}", [word], f"item-{n:09d}")
        for n, word in enumerate(slang)
    ]
    index = timed("build", items, lambda: KnowledgeIndex(catalogue, clicks, 5, 3))
    with tempfile.TemporaryDirectory() as folder:
        timed("save", items, lambda: index.save(Path(folder)))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        loaded = timed("load, memory-mapped", items, lambda: KnowledgeIndex.load(Path(folder)))
        timed(
            "explain, one pair at a time",
            SLOW_QUERIES,
            lambda: [loaded.explain(*p) for p in pairs[:SLOW_QUERIES]],
        )
        timed("explain, many pairs", QUERIES, lambda: loaded.explain_many(pairs))
        own = Bm25.load(Path(folder))
        library = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        known = {
            kind: [[t for t in text.lower().split() if t in library.vocab_dict] or ["no0"] for text in texts]
            for kind, texts in (("slang", slang), ("queries", queries))
        }
        for kind, texts in (("slang", slang), ("queries", queries)):
            words = known[kind]
            timed(f"{kind}: sparse product", QUERIES, functools.partial(own.top, texts, TOP))
            for backend, count in (("numba", QUERIES), ("numpy", SLOW_QUERIES)):
                library.backend = backend
                search = functools.partial(library.retrieve, words[:count], k=TOP, show_progress=False)
                if (kind, backend) == ("slang", "numba"):
                    timed("bm25s, numba: first call", count, search)
                timed(f"{kind}: bm25s, {backend}", count, search)
        library.backend = "numba"
        theirs = library.retrieve(known["slang"], k=TOP, show_progress=False).documents.tolist()
        pairs_of = [(a.tolist(), b[: len(a)]) for a, b in zip(own.top(slang, TOP), theirs, strict=True)]
        same = float(np.mean([set(a) == set(b) for a, b in pairs_of]))
        ordered = float(np.mean([a == b for a, b in pairs_of]))
        said = catalogue.selling_points.tolist()
        say((size, recall(said, own, slang[:20]), recall(said, own, queries[:20]), same, ordered))


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    last: dict[str, tuple[int, float]] = {}
    print(f"{'way':28}{'items':>10}{'of':>10}{'CPU s':>10}{'per second':>12}{'MiB':>8}{'growth':>8}")
    for items in sizes_asked(__doc__):
        heard, tell = spawn.Pipe(duplex=False)
        child = spawn.Process(target=measure, args=(items, tell.send))
        child.start()
        tell.close()
        while isinstance((row := heard.recv())[0], str):
            what, count, seconds, mebibytes = row
            before = last.get(what)
            growth = f"{math.log(seconds / before[1]) / math.log(items / before[0]):.2f}" if before else ""
            last[what] = (items, max(seconds, 1e-6))
            rate = f"{count / max(seconds, 1e-6):,.0f}"
            print(
                f"{what:28}{items:>10,}{count:>10,}{seconds:>10.3f}{rate:>12}{mebibytes:>8.0f}{growth:>8}",
                flush=True,
            )
        size, rare, common, same, ordered = row
        print(
            f"on disk {size / 2**20:.1f} MiB; recall@{TOP} of slang {rare:.4f}, of queries {common:.4f}; "
            f"numba: the same {same:.2f}, in the same order {ordered:.2f}",
            flush=True,
        )
        child.join()


if __name__ == "__main__":
    main()
