"""Adapter: WANDS, Wayfair's furniture queries with products in three grades.

Schema (README.md and read_dataset.ipynb of github.com/wayfair/WANDS): three tab-separated files named .csv.
``query.csv``: query_id, query, query_class. ``product.csv``: product_id, product_name, product_class,
``category hierarchy`` (with a blank in the file, with an underscore in the README), product_description,
product_features (``name : value|name:value``), rating_count, average_rating, review_count. ``label.csv``: id,
query_id, product_id, label. 480 queries, 42,994 products, 233,448 judgements, MIT licence.

Limits. Three grades cannot fill four: Partial holds near products and conflicting ones alike, and none
becomes L2. A model that rightly says L2 is wrong here, in acc@2 as well. There are no prices, pictures,
shops, clicks or meanings of queries, and no official split.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pandas as pd

from lore_lib.errors import nearest
from lore_lib.vertical.adapters.download import Remote, fetch_files
from lore_lib.vertical.adapters.frames import build_tables, cut_words, split_of
from lore_lib.vertical.adapters.rows import Problems, ReadReport, Row, read_rows, text_of
from lore_lib.vertical.contract import Tables

LABELS: dict[str, str] = {"Exact": "L4", "Partial": "L3", "Irrelevant": "L1"}
"""Grade of the files -> label."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "query.csv": ("query_id", "query"),
    "product.csv": (
        "product_id", "product_name", "product_class", "category hierarchy", "product_description",
        "product_features",
    ),
    "label.csv": ("query_id", "product_id", "label"),
}  # fmt: skip
"""What is read of each file."""

_BASE = "https://raw.githubusercontent.com/wayfair/WANDS/3b74dcf4ba29ab8ff3e6a50b5b09fc627cb882b5/dataset"
FILES: tuple[Remote, ...] = (
    Remote(
        "query.csv",
        f"{_BASE}/query.csv",
        19_942,
        "63b61660560fecc33ec490804c7e2b81402ee3e7c31a9cbb5e03736639f68e95",
    ),
    Remote(
        "product.csv",
        f"{_BASE}/product.csv",
        90_621_131,
        "d993926254572e6eba96c8fd87cc549a17fb91ad3748308036eee4cf92b10ac6",
    ),
    Remote(
        "label.csv",
        f"{_BASE}/label.csv",
        5_736_234,
        "c11fe81ad62f17f56f316b0ec9630ebe8fbe1393578cb0ca4f05c17253a180ef",
    ),
)
"""Sizes and checksums are those that several public projects pin for this commit."""


def fetch(folder: Path, client: httpx.Client | None = None) -> list[Path]:
    """Download the three files (92 MB); see ``fetch_files``."""
    return fetch_files(FILES, folder, client)


def read(
    folder: Path,
    max_attributes: int = 6,
    title_words: int = 16,
    value_words: int = 4,
    description_words: int = 40,
    report: ReadReport | None = None,
) -> Tables:
    """Read the three files into checked tables.

    A pair that several annotators judged gets the grade of the majority; one without a majority is left out.
    Items are the products that some pair names. The CPV is the product's class and its first attributes, the
    selling points are the beginning of its description, the industry is the top of its category hierarchy.
    Queries are split by ``split_of``.

    Args:
        folder: holds the files of ``COLUMNS``.
        max_attributes: attributes kept per product beside its class, in the order of the file.
        title_words: words kept of a title; likewise the other ``_words``.
        report: counts merged judgements, pairs without a majority, and products nobody judged.

    Raises:
        DataError: files, columns, ids or grades are missing or wrong; all of it is listed.
    """
    report = ReadReport() if report is None else report
    problems = Problems(folder)
    queries = _queries(folder, problems)
    votes = _votes(folder, problems)
    judged = {item_id for _, item_id in votes}
    items: dict[str, dict[str, Any]] = {}
    for row in read_rows(folder / "product.csv", COLUMNS["product.csv"], problems, "\t"):
        item_id = text_of(row, "product_id", problems, required=True)
        if item_id in items:
            problems.add(row, "product_id", f"is {item_id!r}, which another row has; ids stand once")
        elif item_id in judged:
            items[item_id] = {"item_id": item_id} | _item(
                row, problems, max_attributes, title_words, value_words, description_words
            )
        else:
            report.note("product that no pair names", item_id)
    for (query_id, item_id), (_, row) in votes.items():
        if query_id not in queries:
            problems.add(row, "query_id", f"is {query_id!r}, which query.csv does not have")
        if item_id not in items:
            problems.add(row, "product_id", f"is {item_id!r}, which product.csv does not have")
    problems.raise_any()
    pairs = []
    for (query_id, item_id), (grades, row) in votes.items():
        (grade, most), count = grades.most_common(1)[0], grades.total()
        if count > 1:
            report.note("pair judged more than once, merged by majority", row.where)
        if 2 * most <= count:
            report.note("pair without a majority, left out", row.where)
            continue
        pairs.append(
            {
                "pair_id": f"{query_id}-{item_id}",
                "query_id": query_id,
                "item_id": item_id,
                "label": LABELS[grade],
                "split": queries[query_id]["split"],
            }
        )
    return build_tables(
        folder, pd.DataFrame(items.values()), pd.DataFrame(queries.values()), pd.DataFrame(pairs)
    )


def _queries(folder: Path, problems: Problems) -> dict[str, dict[str, Any]]:
    queries: dict[str, dict[str, Any]] = {}
    for row in read_rows(folder / "query.csv", COLUMNS["query.csv"], problems, "\t"):
        query_id = text_of(row, "query_id", problems, required=True)
        text = text_of(row, "query", problems, required=True)
        if query_id in queries:
            problems.add(row, "query_id", f"is {query_id!r}, which another row has; ids stand once")
        queries[query_id] = {"query_id": query_id, "query": text, "split": split_of(text)}
    return queries


def _votes(folder: Path, problems: Problems) -> dict[tuple[str, str], tuple[Counter[str], Row]]:
    """(query, product) -> how often each grade was given, and the first row that judged the pair."""
    votes: dict[tuple[str, str], tuple[Counter[str], Row]] = {}
    for row in read_rows(folder / "label.csv", COLUMNS["label.csv"], problems, "\t"):
        key = (
            text_of(row, "query_id", problems, required=True),
            text_of(row, "product_id", problems, required=True),
        )
        grade = text_of(row, "label", problems)
        if grade not in LABELS:
            problems.add(row, "label", f"is {grade!r:.60}; {nearest(grade, LABELS)}")
        votes.setdefault(key, (Counter(), row))[0][grade] += 1
    return votes


def _item(
    row: Row,
    problems: Problems,
    max_attributes: int,
    title_words: int,
    value_words: int,
    description_words: int,
) -> dict[str, Any]:
    told: dict[str, str] = {}
    for feature in text_of(row, "product_features", problems).split("|"):
        name, _, value = (part.strip() for part in feature.partition(":"))
        if name and value and name not in told and len(told) < max_attributes:
            told[name] = cut_words(value, value_words)
    kind = text_of(row, "product_class", problems)
    category = text_of(row, "category hierarchy", problems) or kind
    return {
        "title": cut_words(text_of(row, "product_name", problems, required=True), title_words),
        "cpv": json.dumps(({"class": kind} if kind else {}) | told, ensure_ascii=False),
        "selling_points": cut_words(text_of(row, "product_description", problems), description_words),
        "industry": category.partition("/")[0].strip(),
    }
