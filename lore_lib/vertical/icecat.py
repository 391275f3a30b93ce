"""Adapter: the Chorus Icecat files (electronics with graded query-product pairs) as the tables of a vertical.

The files are read line by line and never written: ``products.jsonl.gz`` holds one product a line,
``pairs.jsonl.gz`` one rating a line. Every text is bounded in words, because a product may carry a hundred
attributes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lore_lib.errors import DataError
from lore_lib.vertical.tables import check_tables

PRODUCTS, PAIRS = "products.jsonl.gz", "pairs.jsonl.gz"

GRADES: dict[int, str] = {0: "L1", 1: "L2", 2: "L3", 3: "L4"}
"""Rating of the files -> label."""

ATTRIBUTE_PREFIXES = ("attr_t_", "attr_n_", "attr_b_")
"""Typed attributes: text, number, yes or no."""


def read_icecat(
    folder: Path, max_attributes: int = 6, title_words: int = 16, value_words: int = 4
) -> dict[str, pd.DataFrame]:
    """Read the two files into checked tables ``items``, ``queries``, ``pairs`` and ``clicks``.

    Items are the products that some pair names; all pairs are of kind and intent "plain"; the click log is
    empty. A query goes to train (14 of 20 buckets), dev (2) or test (4) by a hash of its words, in which
    plural and blank do not count, so that "laptop" and "laptops" never part. Products are shared between
    splits.

    Args:
        folder: holds both files.
        max_attributes: attributes kept per product beside its brand, in the order of the file.
        title_words: words kept of a title.
        value_words: words kept of an attribute's value.

    Raises:
        DataError: a file is missing or damaged, or a line is malformed or holds an unknown rating (file and
            line are named), or a pair names a product that is not there.
    """
    pairs, queries = _pairs(folder / PAIRS)
    wanted = {pair["item_id"] for pair in pairs}
    items = [
        _item(where, row, max_attributes, title_words, value_words)
        for where, row in _lines(folder / PRODUCTS)
        if _text(where, row, "id") in wanted
    ]
    tables = {
        "items": pd.DataFrame(items, columns=_ITEM_COLUMNS),
        "queries": pd.DataFrame(queries),
        "pairs": pd.DataFrame(pairs),
        "clicks": pd.DataFrame({"query_id": [], "item_id": [], "clicks": []}).astype(
            {"query_id": str, "item_id": str, "clicks": int}
        ),
    }
    return check_tables(tables, folder)


_ITEM_COLUMNS = ["item_id", "title", "cpv", "skus", "shop", "price", "selling_points", "industry", "picture"]


def _pairs(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    pairs: list[dict[str, Any]] = []
    queries: dict[str, dict[str, Any]] = {}
    for where, row in _lines(path):
        text, item_id, rating = _text(where, row, "query"), _text(where, row, "docid"), row.get("rating")
        if type(rating) is not int or rating not in GRADES:
            known = ", ".join(map(str, GRADES))
            raise DataError(f"{where}: rating {rating!r} is none of {known}; drop the line or extend GRADES")
        query = queries.setdefault(
            text,
            {
                "query_id": f"icecat-q{len(queries):05d}",
                "query": text,
                "intent": "plain",
                "frequency": 1,
                "demands": "[]",
                "split": split_of(text),
            },
        )
        pairs.append(
            {
                "pair_id": f"{query['query_id']}-{item_id}",
                "query_id": query["query_id"],
                "item_id": item_id,
                "label": GRADES[rating],
                "mismatch": "",
                "path": "[]",
                "kind": "plain",
                "split": query["split"],
            }
        )
    if not pairs:
        raise DataError(f"{path}: no line at all; the file should hold one rating a line")
    return pairs, list(queries.values())


def _item(
    where: str, row: dict[str, Any], max_attributes: int, title_words: int, value_words: int
) -> dict[str, Any]:
    price = row.get("price")
    if isinstance(price, bool) or not isinstance(price, int | float):
        raise DataError(f"{where}: price {price!r} is no number")
    told = {
        key[len(prefix) :].replace("_", " ").strip(): _shown(value, value_words)
        for key, value in row.items()
        for prefix in ATTRIBUTE_PREFIXES
        if key.startswith(prefix)
    }
    kept = list(told.items())[:max_attributes]
    return {
        "item_id": row["id"],
        "title": _cut(_text(where, row, "title"), title_words),
        "cpv": json.dumps({"brand": _cut(_text(where, row, "supplier"), value_words), **dict(kept)}),
        "skus": "[]",
        "shop": "",
        "price": float(price),
        "selling_points": "",
        "industry": "electronics",
        "picture": b"",
    }


def split_of(query: str) -> str:
    """train, dev or test, by a hash of the query's words without plural and blanks.

    >>> split_of("Laptops") == split_of("laptop"), split_of("head set") == split_of("headset")
    (True, True)
    """
    stem = "".join(word.removesuffix("s") for word in query.casefold().split())
    bucket = int.from_bytes(hashlib.sha256(stem.encode()).digest()[:4], "big") % 20
    return "test" if bucket < 4 else "dev" if bucket < 6 else "train"


def _shown(value: object, words: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else _cut(str(value).replace("\\n", " "), words)


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _text(where: str, row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{where}: field {field!r} is {value!r}; every line needs it as text (found {', '.join(row)})"
        )
    return value


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", row) for each line that is not blank."""
    if not path.is_file():
        raise DataError(f"no file {path}; the folder must hold {PRODUCTS} and {PAIRS}")
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: a {type(row).__name__}, not a JSON object")
                yield f"{path}:{number}", row
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON: {error}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged after line {number}: {error}; fetch the file again") from error
