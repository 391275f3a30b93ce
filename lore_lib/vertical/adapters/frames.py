"""What every adapter ends with: splits by query, bounded text, and rows completed to the four tables."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd

from lore_lib.vertical.contract import Tables, check_tables

DEFAULTS: dict[str, dict[str, Any]] = {
    "items": {
        "cpv": "{}",
        "skus": "[]",
        "shop": "",
        "price": 0.0,
        "selling_points": "",
        "industry": "",
        "picture": b"",
    },
    "queries": {"intent": "plain", "frequency": 1, "demands": "[]"},
    "pairs": {"mismatch": "", "path": "[]", "kind": "plain"},
}
"""What a column holds where a data set says nothing. Price 0 means "not stated"."""

_KEYS = {"items": ["item_id", "title"], "queries": ["query_id", "query", "split"]}
_CLICKS = {"query_id": str, "item_id": str, "clicks": int}


def normal_form(query: str) -> str:
    """The query without what does not change its meaning: case, width, blanks, zero-width marks, plural s.

    >>> normal_form("Head\\u200b sets"), normal_form("ＨＥＡＤＳＥＴ")
    ('headset', 'headset')
    """
    words = unicodedata.normalize("NFKC", query).casefold().split()
    shown = ("".join(c for c in word if unicodedata.category(c)[0] != "C") for word in words)
    return "".join(word.removesuffix("s") for word in shown)


def split_of(query: str) -> str:
    """train (14 of 20 buckets), dev (2) or test (4), by a hash of the query's normal form.

    Two spellings of one query never part, whatever file or order they come in.

    >>> split_of("Laptops") == split_of("laptop"), split_of("head set") == split_of("headset")
    (True, True)
    """
    digest = hashlib.sha256(normal_form(query).encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 20
    return "test" if bucket < 4 else "dev" if bucket < 6 else "train"


def query_key(query: str) -> str:
    """A query_id made of the text alone, the same in every file and run."""
    return f"q-{hashlib.sha256(query.encode()).hexdigest()[:16]}"


def cut_words(text: str, words: int) -> str:
    """The first `words` words, separated by single blanks."""
    return " ".join(text.split(maxsplit=words)[:words])


def build_tables(
    where: Path | str,
    items: pd.DataFrame,
    queries: pd.DataFrame,
    pairs: pd.DataFrame,
    clicks: pd.DataFrame | None = None,
) -> Tables:
    """The four tables, checked; columns that a frame lacks are filled from ``DEFAULTS``.

    Raises:
        DataError: the tables break their contract (``check_tables``).
    """
    if clicks is None:
        clicks = pd.DataFrame({name: [] for name in _CLICKS}).astype(_CLICKS)
    tables = {"items": items, "queries": queries, "pairs": pairs}
    return check_tables(
        {name: _complete(name, table) for name, table in tables.items()} | {"clicks": clicks}, where
    )


def _complete(name: str, table: pd.DataFrame) -> pd.DataFrame:
    if table.empty and not len(table.columns):
        table = pd.DataFrame(columns=_KEYS.get(name, ["pair_id", "query_id", "item_id", "label", "split"]))
    lacking = {column: value for column, value in DEFAULTS[name].items() if column not in table.columns}
    return table.assign(**{column: [value] * len(table) for column, value in lacking.items()})
