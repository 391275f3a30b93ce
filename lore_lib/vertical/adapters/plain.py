"""Adapter: a team's own CSV, JSON-lines or Parquet files, mapped by the section ``tables`` of its vertical.

The section names, for each table, the file and which of its columns hold what::

    items:
      file: products.csv
      columns: {item_id: sku, title: name, price: usd, cpv: {brand: maker, color: colour}}
    queries: {file: queries.csv, columns: {query_id: id, query: text}}
    pairs:
      file: ratings.csv
      columns: {query_id: id, item_id: sku, label: grade}
      labels: {3: L4, 2: L3, 1: L2, 0: L1, "?": skip}
    clicks: {file: clicks.csv, columns: {query_id: id, item_id: sku, clicks: n}}

Without ``queries`` the pairs map ``query``, and every text that occurs becomes a query. ``clicks`` may be
absent, and so may every column that has a default in :mod:`lore_lib.vertical.mapping`. Nothing is guessed: a
price such as "12,99" is refused with the number that it probably means.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from lore_lib.errors import nearest
from lore_lib.vertical.adapters.frames import build_tables, normal_form, query_key, split_of
from lore_lib.vertical.adapters.pictures import read_picture
from lore_lib.vertical.adapters.rows import Problems, ReadReport, Row, read_rows, text_of
from lore_lib.vertical.contract import SPLITS, Tables
from lore_lib.vertical.mapping import SKIP, OwnTables, PairColumns, QueryColumns, grade_text
from lore_lib.vertical.schema import DIMENSIONS, INTENTS, KINDS

_NO_PRICE = {"", "-", "n/a", "na", "nan", "none", "null"}
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


def read(folder: Path, own: OwnTables, max_chars: int = 2000, report: ReadReport | None = None) -> Tables:
    """Read the files into checked tables.

    Texts are kept as they stand, zero-width and right-to-left characters included; blanks and such characters
    alone count as no text. Queries go to the split that the files say, else to that of ``split_of``.

    Args:
        folder: files and pictures are named relative to it.
        own: which files and columns hold what.
        max_chars: longer texts are cut.
        report: counts pairs that were skipped, texts that were cut, and pictures that are missing or broken,
            which are left empty.

    Raises:
        DataError: every problem of the files in one list: missing files and columns, unreadable rows, ids
            that repeat or name nothing, numbers and grades that are none, a query in two splits.
    """
    problems = Problems(folder)
    tables = collect(folder, own, problems, ReadReport() if report is None else report, max_chars)
    problems.raise_any()
    assert tables is not None
    return tables


def collect(
    folder: Path, own: OwnTables, problems: Problems, report: ReadReport, max_chars: int = 2000
) -> Tables | None:
    """Like :func:`read`, but adds what is wrong to `problems`; no tables where anything is."""
    reader = _Reader(folder, own, max_chars, problems, report)
    items = reader.items()
    queries = reader.queries()
    pairs = reader.pairs(items, queries)
    clicks = reader.clicks(items, queries)
    reader.check_splits(queries)
    if len(problems):
        return None
    return build_tables(
        folder,
        pd.DataFrame(items.values()),
        pd.DataFrame(queries.values()),
        pd.DataFrame(pairs),
        pd.DataFrame(clicks) if clicks else None,
    )


class _Reader:
    """Reads the tables one after the other; problems and report collect what is seen on the way."""

    def __init__(
        self, folder: Path, own: OwnTables, max_chars: int, problems: Problems, report: ReadReport
    ) -> None:
        self._folder, self._own, self._max_chars = folder, own, max_chars
        self._problems, self._report = problems, report
        self._split_rows: dict[str, tuple[Row, str]] = {}  # query_id -> its row and the column of its split

    def items(self) -> dict[str, dict[str, Any]]:
        """item_id -> row of the table items."""
        mapped = self._own.items.columns
        items: dict[str, dict[str, Any]] = {}
        first: dict[str, int] = {}
        for row in self._rows(self._own.items.file, mapped):
            item_id = self._key(row, mapped.item_id, first)
            item: dict[str, Any] = {"item_id": item_id, "title": self._text(row, mapped.title, required=True)}
            for name in ("shop", "selling_points", "industry"):
                if column := getattr(mapped, name):
                    item[name] = self._text(row, column)
            if mapped.cpv:
                item["cpv"] = self._cpv(row, mapped.cpv)
            if mapped.skus:
                item["skus"] = self._json(row, mapped.skus, list, '["S", "M"]')
            if mapped.price:
                item["price"] = _price(row, mapped.price, self._problems)
            if mapped.picture:
                item["picture"], reason = read_picture(row.values.get(mapped.picture), self._folder)
                if reason:
                    self._report.note(reason, row.where, column=mapped.picture)
            if item_id:
                items[item_id] = item
        return items

    def queries(self) -> dict[str, dict[str, Any]]:
        """query_id -> row of the table queries; empty where the pairs hold the texts."""
        queries: dict[str, dict[str, Any]] = {}
        if self._own.queries is None:
            return queries
        mapped = self._own.queries.columns
        first: dict[str, int] = {}
        for row in self._rows(self._own.queries.file, mapped):
            query_id = self._key(row, mapped.query_id, first)
            query = self._query(row, query_id, self._text(row, mapped.query, required=True), mapped)
            if mapped.intent:
                query["intent"] = self._word(row, mapped.intent, tuple(INTENTS))
            if mapped.frequency:
                query["frequency"] = _whole(row, mapped.frequency, self._problems)
            if query_id:
                queries[query_id] = query
        return queries

    def pairs(self, items: Collection[str], queries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the table pairs; where no queries were read, adds those that the pairs hold."""
        mapped = self._own.pairs.columns
        pairs: list[dict[str, Any]] = []
        first: dict[tuple[str, str], int] = {}
        made: set[str] = set()
        keys: dict[str, int] = {}
        skipped = 0
        for row in self._rows(self._own.pairs.file, mapped):
            label = self._label(row, mapped.label)
            if label == SKIP:
                skipped += 1
                reason = f"grade {row.values[mapped.label]!r:.60} is skipped"
                self._report.note(reason, row.where, column=mapped.label)
                continue
            if self._own.queries is None:
                query_id = self._derive(row, mapped, queries)
            else:
                query_id = self._reference(row, str(mapped.query_id), queries, "queries")
            item_id = self._reference(row, mapped.item_id, items, "items")
            if (query_id, item_id) in first:
                same = first[query_id, item_id]
                text = f"makes the same pair as row {same}; a pair has one label, so drop one"
                self._problems.add(row, mapped.item_id, text)
            first.setdefault((query_id, item_id), row.number)
            pair_id = f"{query_id}-{item_id}"
            if mapped.pair_id:
                pair_id = self._key(row, mapped.pair_id, keys)
            elif pair_id in made:  # of other ids, such as "a-b" and "c" after "a" and "b-c"
                pair_id = f"{pair_id}~{row.number}"
            made.add(pair_id)
            pair = {"pair_id": pair_id, "query_id": query_id, "item_id": item_id, "label": label}
            if mapped.mismatch:
                pair["mismatch"] = self._mismatch(row, mapped.mismatch, label)
            if mapped.kind:
                pair["kind"] = self._word(row, mapped.kind, KINDS)
            pair["split"] = queries[query_id]["split"] if query_id in queries else ""
            pairs.append(pair)
        if skipped and not pairs:
            text = f"every one of {skipped} rows is skipped; map a grade to one of L1 to L4"
            self._problems.add_file(self._own.pairs.file, text)
        return pairs

    def clicks(self, items: Collection[str], queries: Collection[str]) -> list[dict[str, Any]]:
        """Rows of the table clicks, none where it is not mapped."""
        if self._own.clicks is None:
            return []
        mapped = self._own.clicks.columns
        return [
            {
                "query_id": self._reference(row, mapped.query_id, queries, "queries"),
                "item_id": self._reference(row, mapped.item_id, items, "items"),
                "clicks": _whole(row, mapped.clicks, self._problems),
            }
            for row in self._rows(self._own.clicks.file, mapped)
        ]

    def check_splits(self, queries: Mapping[str, dict[str, Any]]) -> None:
        """Add a problem for each query that stands, maybe spelt differently, in another split too."""
        split_of_form: dict[str, tuple[str, str]] = {}
        for query_id, (row, column) in self._split_rows.items():
            split, text = queries[query_id]["split"], queries[query_id]["query"]
            other, where = split_of_form.setdefault(normal_form(text), (split, row.where))
            if other != split:
                says = f"puts {text!r:.60} into {split}, but {where} has it in {other}; one query, one split"
                self._problems.add(row, column, says)

    def _rows(self, file: str, columns: BaseModel) -> Iterator[Row]:
        return read_rows(self._folder / file, dict.fromkeys(mapped_names(columns)), self._problems)

    def _text(self, row: Row, column: str, required: bool = False) -> str:
        return self._cut(row, column, text_of(row, column, self._problems, required))

    def _cut(self, row: Row, column: str, text: str) -> str:
        if len(text) <= self._max_chars:
            return text
        self._report.note(f"{column} cut to {self._max_chars} characters", row.where, column=column)
        return text[: self._max_chars]

    def _key(self, row: Row, column: str, first: dict[str, int]) -> str:
        key = text_of(row, column, self._problems, required=True)
        if key and key in first:
            text = f"is {key!r:.60}, which row {first[key]} has already; ids stand once"
            self._problems.add(row, column, text)
        first.setdefault(key, row.number)
        return key

    def _reference(self, row: Row, column: str, known: Collection[str], table: str) -> str:
        key = text_of(row, column, self._problems, required=True)
        if key and known and key not in known:  # an empty id or table has its own problem
            self._problems.add(row, column, f"is {key!r:.60}, which {table} do not have")
        return key

    def _derive(self, row: Row, mapped: PairColumns, queries: dict[str, dict[str, Any]]) -> str:
        text = self._text(row, str(mapped.query), required=True)
        query_id = query_key(text)
        if mapped.query_id:
            query_id = text_of(row, mapped.query_id, self._problems, required=True)
        query = self._query(row, query_id, text, mapped)
        known = queries.setdefault(query_id, query)
        for name, column in (("query", mapped.query), ("split", mapped.split)):
            if column and known[name] != query[name]:
                says = f"is {query[name]!r:.60}; query {query_id!r:.60} had {known[name]!r:.60} before"
                self._problems.add(row, column, says)
        return query_id

    def _query(
        self, row: Row, query_id: str, text: str, mapped: PairColumns | QueryColumns
    ) -> dict[str, Any]:
        if mapped.split:
            split = self._word(row, mapped.split, SPLITS)
            self._split_rows.setdefault(query_id, (row, mapped.split))
        else:
            split = split_of(text)
        return {"query_id": query_id, "query": text, "split": split}

    def _word(self, row: Row, column: str, known: Sequence[str]) -> str:
        word = text_of(row, column, self._problems)
        if word not in known:
            self._problems.add(row, column, f"is {word!r:.60}; {nearest(word[:60], known)}")
        return word

    def _label(self, row: Row, column: str) -> str:
        value = row.values.get(column)
        label = self._own.pairs.labels.get("" if _is_missing(value) else grade_text(value))
        if label is None:
            known = ", ".join(map(repr, self._own.pairs.labels))
            text = f"is {value!r:.60}, no known grade; known: {known}; add it to 'labels', or skip it there"
            self._problems.add(row, column, text)
        return label or ""

    def _mismatch(self, row: Row, column: str, label: str) -> str:
        value = row.values.get(column)
        dimension = "" if _is_missing(value) else self._word(row, column, tuple(DIMENSIONS))
        if dimension and label not in ("", "L2"):
            text = f"is {dimension!r:.60} beside {label}; only an L2 names what failed, so leave it empty"
            self._problems.add(row, column, text)
        return dimension

    def _cpv(self, row: Row, mapped: str | Mapping[str, str]) -> str:
        if isinstance(mapped, str):
            return self._json(row, mapped, dict, '{"color": "navy"}')
        told = {
            name: self._cut(row, column, _shown(row, column, self._problems))
            for name, column in mapped.items()
        }
        return json.dumps({name: text for name, text in told.items() if text}, ensure_ascii=False)

    def _json(self, row: Row, column: str, kind: type, example: str) -> str:
        value = row.values.get(column)
        if isinstance(value, str) and value.strip():
            with contextlib.suppress(ValueError, RecursionError):  # what stays a text is refused below
                value = json.loads(value)
        if _is_missing(value):
            value = kind()
        if not isinstance(value, kind):
            self._problems.add(row, column, f"is {value!r:.60}; give JSON such as {example}")
            value = kind()
        text = json.dumps(value, ensure_ascii=False, default=str)
        text = text_of(row._replace(values={column: text}), column, self._problems)
        if len(text) > self._max_chars:
            reason = f"{column} longer than {self._max_chars} characters, left out"
            self._report.note(reason, row.where, column=column)
            return json.dumps(kind())
        return text


def mapped_names(columns: BaseModel) -> Iterator[str]:
    """The team's columns that are mapped, as often as they are."""
    for _, names in columns:
        yield from names.values() if isinstance(names, Mapping) else [names] if names else []


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _shown(row: Row, column: str, problems: Problems) -> str:
    """An attribute's value as text: yes or no, a number without needless digits, else as it stands."""
    value = row.values.get(column)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return text_of(row, column, problems)


def _whole(row: Row, column: str, problems: Problems) -> int:
    value = row.values.get(column)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        problems.add(row, column, f"is {value!r:.60}; give a whole number of at least 0")
        return 0
    return value


def _price(row: Row, column: str, problems: Problems) -> float:
    value = row.values.get(column)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    problems.add(row, column, f"is {value!r:.60}; {_price_fix(value)}")
    return 0.0


def _price_fix(value: object) -> str:
    """What to write instead of a price that is no plain number.

    >>> _price_fix("12,99"), _price_fix("$1,299.00")
    ('did you mean 12.99?', 'did you mean 1299.00?')
    >>> _price_fix(None)
    'write 0 where the price is not known'
    """
    text = str(value).strip()
    if text.casefold() in _NO_PRICE:
        return "write 0 where the price is not known"
    numbers = re.findall(r"[0-9][0-9.,]*", text[:60])
    digits = numbers[0] if len(numbers) == 1 else ""
    if re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", digits):
        digits = digits.replace(",", "")
    elif re.fullmatch(r"[0-9]{1,3}(\.[0-9]{3})*,[0-9]{1,2}|[0-9]+,[0-9]{1,2}", digits):
        digits = digits.replace(".", "").replace(",", ".")
    if _NUMBER.fullmatch(digits) and not text.startswith("-"):
        return f"did you mean {digits}?"
    return "give a number of at least 0 such as 12.99, without currency"
