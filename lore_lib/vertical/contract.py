"""The contract of the four tables: what every reader of rows makes and every stage may count on."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lore_lib.errors import DataError, listed
from lore_lib.vertical.schema import DIMENSIONS, INTENTS, KINDS, LABELS, load_demands

Tables = dict[str, pd.DataFrame]

COLUMNS: dict[str, tuple[str, ...]] = {
    "items": ("item_id", "title", "cpv", "skus", "shop", "price", "selling_points", "industry", "picture"),
    "queries": ("query_id", "query", "intent", "frequency", "split"),
    "pairs": ("pair_id", "query_id", "item_id", "label", "mismatch", "kind", "split"),
    "clicks": ("query_id", "item_id", "clicks"),
}
"""Columns every table must have; see ``data/README.md`` for their meaning."""

TEXTS = {"items": ("title", "cpv", "skus", "shop", "selling_points", "industry"), "queries": ("query",)}
"""Columns that hold text in every row; an empty one is "", never a missing value."""

KEYS = {"items": "item_id", "queries": "query_id", "pairs": "pair_id"}
SPLITS = ("train", "dev", "test")
PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def check_tables(tables: dict[str, pd.DataFrame], where: Path | str) -> Tables:
    """Return the tables unchanged, or list everything that is wrong with them.

    Raises:
        DataError: missing columns, keys that repeat or are no text, missing texts, unknown labels, kinds,
            intents or splits, mismatches that are no dimension or not of an L2, dangling references, a query
            in two splits, prices and clicks that are no numbers, attributes that are no JSON, pictures that
            are none.
    """
    if problems := table_problems(tables):
        raise DataError(f"{where}: {listed(problems)}")
    return tables


def split_sharing(queries: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """How many query meanings and items stand in one split, and in several.

    Two queries mean the same if their demands do, in whatever words; where no demands are known, if their
    texts do but for case.

    Returns:
        Rows meanings, items; columns "in one split", "in several splits".
    """
    known = queries.get("demands", pd.Series("[]", queries.index)).map(load_demands)
    meant = known.map(lambda asked: frozenset((d.dimension, d.value, d.negated) for d in asked))
    meaning = meant.where(meant.map(len) > 0, queries["query"].str.lower())
    splits = {
        "meanings": queries["split"].groupby(meaning).nunique(),
        "items": pairs.groupby("item_id")["split"].nunique(),
    }
    return pd.DataFrame(
        {
            "in one split": {name: int((counts == 1).sum()) for name, counts in splits.items()},
            "in several splits": {name: int((counts > 1).sum()) for name, counts in splits.items()},
        }
    )


def table_problems(tables: Tables) -> list[str]:
    """All that is wrong with the tables, each "<table>: what"; contents only where no column is missing."""
    problems = [
        f"{name}: missing column {column!r} (found {', '.join(tables[name].columns)})"
        for name, columns in COLUMNS.items()
        for column in columns
        if column not in tables[name].columns
    ]
    return problems or _content_problems(tables)


def _content_problems(tables: Tables) -> list[str]:
    return [
        *(f"{name}: the table is empty" for name in KEYS if tables[name].empty),
        *_key_problems(tables),
        *_word_problems(tables),
        *_mismatch_problems(tables["pairs"]),
        *_reference_problems(tables),
        *_item_problems(tables["items"]),
        *_click_problems(tables["clicks"]),
    ]


def _key_problems(tables: Tables) -> Iterator[str]:
    for name, key in KEYS.items():
        twice = tables[name].loc[tables[name][key].duplicated(), key]
        if len(twice):
            yield f"{name}: {len(twice)} repeated {key}, first {twice.iloc[0]!r}"
        textless = [found for found in tables[name][key] if not isinstance(found, str) or not found]
        if textless:
            yield f"{name}: {len(textless)} rows whose {key} is no text, first {textless[0]!r}; give text"


def _word_problems(tables: Tables) -> Iterator[str]:
    for name, column, known in (
        ("pairs", "label", LABELS),
        ("pairs", "kind", KINDS),
        ("pairs", "split", SPLITS),
        ("queries", "intent", tuple(INTENTS)),
    ):
        key = KEYS[name]
        odd = tables[name].loc[~tables[name][column].isin(known), [key, column]]
        if len(odd):
            first = odd.iloc[0]
            yield (
                f"{name}: {len(odd)} rows with an unknown {column}, first {first[key]!r} has "
                f"{first[column]!r}; use one of {', '.join(known)}"
            )
    for name, columns in TEXTS.items():
        for column in columns:
            rows = zip(tables[name][KEYS[name]], tables[name][column], strict=True)
            silent = [key for key, text in rows if not isinstance(text, str)]
            if silent:
                yield f'{name}: {len(silent)} rows have no text in {column!r}, first {silent[0]!r}; use ""'


def _reference_problems(tables: Tables) -> Iterator[str]:
    pairs, queries = tables["pairs"], tables["queries"]
    for key, other in (("query_id", "queries"), ("item_id", "items")):
        lost = pairs.loc[~pairs[key].isin(tables[other][key]), "pair_id"]
        if len(lost):
            yield f"pairs: {len(lost)} rows name a {key} that {other} does not have, first {lost.iloc[0]!r}"
    split_of = dict(zip(queries.query_id, queries.split, strict=True))
    moved = pairs.loc[pairs.split != pairs.query_id.map(split_of), "pair_id"]
    if len(moved):
        yield f"pairs: {len(moved)} rows stand in another split than their query, first {moved.iloc[0]!r}"


def _item_problems(items: pd.DataFrame) -> Iterator[str]:
    price = pd.to_numeric(items["price"], errors="coerce")
    good = {"prices are no number of at least 0": price.between(0, math.inf, inclusive="left")}
    for column, kind, word in (("cpv", dict, "object"), ("skus", list, "list")):
        good[f"{column} are no JSON {word}"] = items[column].map(functools.partial(_is_json, kind=kind))
    good["pictures are no bytes of a PNG or JPEG"] = items["picture"].map(_may_be_picture)
    for said, fine in good.items():
        if not fine.all():
            first = items.loc[~fine.astype(bool), "item_id"].iloc[0]
            yield f"items: {(~fine.astype(bool)).sum()} {said}, first item {first!r}"


def _click_problems(clicks: pd.DataFrame) -> Iterator[str]:
    counted = pd.to_numeric(clicks["clicks"], errors="coerce")
    of_query = clicks.loc[~((counted >= 0) & (counted % 1 == 0)), "query_id"]
    if len(of_query):
        said = f"{len(of_query)} rows have no whole number of clicks, first of query {of_query.iloc[0]!r}"
        yield f"clicks: {said}"


def _mismatch_problems(pairs: pd.DataFrame) -> Iterator[str]:
    """A completion names the dimension in words, and only beside L2."""
    unknown = ~pairs["mismatch"].isin(["", *DIMENSIONS])
    misplaced = ~unknown & (pairs["mismatch"] != "") & (pairs["label"] != "L2")
    for odd, said in (
        (unknown, f'with an unknown mismatch, {{}}; use "" or one of {", ".join(DIMENSIONS)}'),
        (misplaced, "with a mismatch and another label than L2, {}; leave it empty there"),
    ):
        if odd.any():
            first = pairs.loc[odd].iloc[0]
            found = f"first {first['pair_id']!r} has {first['mismatch']!r:.60}"
            yield f"pairs: {odd.sum()} rows {said.format(found)}"


def _is_json(text: object, kind: type) -> bool:
    try:
        return isinstance(json.loads(text), kind)  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError):
        return False


def _may_be_picture(value: object) -> bool:
    """Whether these are no bytes, or begin as a picture does; ``lore validate`` reads all of them."""
    return isinstance(value, bytes) and (not value or value.startswith(PICTURE_STARTS))
