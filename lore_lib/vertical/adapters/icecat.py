"""Adapter: the Chorus Icecat files (electronics with graded pairs) of github.com/querqy/chorus.

``products.jsonl.gz`` holds one product a line (id, title, supplier, price, typed attributes ``attr_t_...``,
``attr_n_...``, ``attr_b_...``), ``pairs.jsonl.gz`` one rating of 0 to 3 a line (query, docid, rating). The
files are read line by line and never written. Every text is bounded in words, because a product may carry a
hundred attributes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from lore_lib.vertical.adapters.frames import build_tables, cut_words, split_of
from lore_lib.vertical.adapters.rows import Problems, ReadReport, Row, read_rows, text_of
from lore_lib.vertical.contract import Tables

PRODUCTS, PAIRS = "products.jsonl.gz", "pairs.jsonl.gz"

GRADES: dict[int, str] = {0: "L1", 1: "L2", 2: "L3", 3: "L4"}
"""Rating of the files -> label."""

ATTRIBUTE_PREFIXES = ("attr_t_", "attr_n_", "attr_b_")
"""Typed attributes: text, number, yes or no."""


def read(
    folder: Path,
    max_attributes: int = 6,
    title_words: int = 16,
    value_words: int = 4,
    report: ReadReport | None = None,
) -> Tables:
    """Read the two files into checked tables ``items``, ``queries``, ``pairs`` and ``clicks``.

    Items are the products that some pair names; all pairs are of kind and intent "plain"; the click log is
    empty. Queries are split by ``split_of``, so that "laptop" and "laptops" never part. Products are shared
    between splits.

    Args:
        folder: holds both files.
        max_attributes: attributes kept per product beside its brand, in the order of the file.
        title_words: words kept of a title.
        value_words: words kept of an attribute's value.
        report: counts products that nobody rated.

    Raises:
        DataError: a file is missing or damaged, a line is malformed or holds an unknown rating, a pair names
            a product that is not there; all of it is listed with file and line.
    """
    report = ReadReport() if report is None else report
    problems = Problems(folder)
    queries: dict[str, dict[str, Any]] = {}
    pairs = [
        _pair(row, queries, problems)
        for row in read_rows(folder / PAIRS, ("query", "docid", "rating"), problems)
    ]
    wanted = {pair["item_id"] for pair in pairs}
    items = []
    for row in read_rows(folder / PRODUCTS, ("id", "title", "supplier", "price"), problems):
        item_id = text_of(row, "id", problems, required=True)
        if item_id in wanted:
            items.append(
                {"item_id": item_id} | _item(row, problems, max_attributes, title_words, value_words)
            )
        else:
            report.note("product that no pair names", item_id)
    problems.raise_any()
    return build_tables(folder, pd.DataFrame(items), pd.DataFrame(queries.values()), pd.DataFrame(pairs))


def _pair(row: Row, queries: dict[str, dict[str, Any]], problems: Problems) -> dict[str, Any]:
    text = text_of(row, "query", problems, required=True)
    item_id = text_of(row, "docid", problems, required=True)
    rating = row.values.get("rating")
    if type(rating) is not int or rating not in GRADES:
        problems.add(row, "rating", f"is {rating!r:.60}; use one of {', '.join(map(str, GRADES))}")
        rating = 0
    new = {"query_id": f"icecat-q{len(queries):05d}", "query": text, "split": split_of(text)}
    query = queries.setdefault(text, new)
    return {
        "pair_id": f"{query['query_id']}-{item_id}",
        "query_id": query["query_id"],
        "item_id": item_id,
        "label": GRADES[rating],
        "split": query["split"],
    }


def _item(
    row: Row, problems: Problems, max_attributes: int, title_words: int, value_words: int
) -> dict[str, Any]:
    price = row.values.get("price")
    if isinstance(price, bool) or not isinstance(price, int | float):
        problems.add(row, "price", f"is {price!r:.60}; give a number")
        price = 0
    told = {
        key[len(prefix) :].replace("_", " ").strip(): _shown(value, value_words)
        for key, value in row.values.items()
        for prefix in ATTRIBUTE_PREFIXES
        if key.startswith(prefix)
    }
    brand = cut_words(text_of(row, "supplier", problems, required=True), value_words)
    return {
        "title": cut_words(text_of(row, "title", problems, required=True), title_words),
        "cpv": json.dumps({"brand": brand, **dict(list(told.items())[:max_attributes])}),
        "price": float(price),
        "industry": "electronics",
    }


def _shown(value: object, words: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:g}" if isinstance(value, int | float) else cut_words(str(value).replace("\\n", " "), words)
    )
