"""Adapter: your own CSV, JSON-lines or Parquet files, by a mapping of column names.

The mapping names, for each table, the file and which of its columns holds what::

    items:   {file: products.csv, item_id: sku, title: name, price: usd, cpv: [brand, color], picture: photo}
    queries: {file: queries.csv, query_id: id, query: text}
    pairs:   {file: ratings.csv, query_id: id, item_id: sku, label: grade}
    clicks:  {file: clicks.csv, query_id: id, item_id: sku, clicks: n}

Without ``queries`` the pairs map ``query``, and every text that occurs becomes a query. ``clicks`` may be
absent, and so may every column that is not ``REQUIRED``. The columns are those of ``data/README.md``. Nothing
is guessed: a price such as "12,99" is refused with the number that it probably means.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lore_lib.errors import nearest
from lore_lib.vertical.adapters.frames import Tables, build_tables, normal_form, query_key, split_of
from lore_lib.vertical.adapters.pictures import read_picture
from lore_lib.vertical.adapters.rows import Problems, ReadReport, Row, read_rows, text_of
from lore_lib.vertical.schema import INTENTS, KINDS, LABELS
from lore_lib.vertical.tables import SPLITS

Columns = Mapping[str, Mapping[str, str | Sequence[str]]]

KNOWN: dict[str, tuple[str, ...]] = {
    "items": ("item_id", "title", "cpv", "skus", "shop", "price", "selling_points", "industry", "picture"),
    "queries": ("query_id", "query", "intent", "frequency", "split"),
    "pairs": ("query_id", "query", "item_id", "label", "mismatch", "kind", "split"),
    "clicks": ("query_id", "item_id", "clicks"),
}
"""Columns that can be mapped."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "items": ("item_id", "title"),
    "queries": ("query_id", "query"),
    "pairs": ("item_id", "label"),
    "clicks": ("query_id", "item_id", "clicks"),
}
"""Columns that must be mapped; pairs need ``query_id`` as well, or ``query`` where there are no queries."""

_NO_PRICE = {"", "-", "n/a", "na", "nan", "none", "null"}
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


def read(
    folder: Path,
    columns: Columns,
    labels: Mapping[str, str] | None = None,
    max_chars: int = 2000,
    report: ReadReport | None = None,
) -> Tables:
    """Read the files into checked tables.

    Texts are kept as they stand, zero-width and right-to-left characters included; blanks and such characters
    alone count as no text. Queries go to the split that the files say, else to that of ``split_of``.

    Args:
        folder: files and pictures are named relative to it.
        columns: table -> {"file": name, column of the kit: your column}; ``cpv`` may be a list of your
            columns, which become one object, or one column that holds a JSON object.
        labels: your grade -> L1 to L4, such as {"Exact": "L4"}; by default the grades are L1 to L4.
        max_chars: longer texts are cut.
        report: counts texts that were cut and pictures that are missing or broken, which are left empty.

    Raises:
        DataError: every problem of mapping and files in one list: missing files and columns, unreadable rows,
            ids that repeat or name nothing, numbers and grades that are none, a query in two splits.
    """
    report = ReadReport() if report is None else report
    labels = {label: label for label in LABELS} if labels is None else labels
    problems = Problems(folder)
    _check_mapping(columns, labels, problems)
    problems.raise_any()
    reader = _Reader(folder, columns, labels, max_chars, problems, report)
    items = reader.items()
    queries = reader.queries()
    pairs = reader.pairs(items, queries)
    clicks = reader.clicks(items, queries)
    reader.check_splits(queries)
    problems.raise_any()
    return build_tables(
        folder,
        pd.DataFrame(items.values()),
        pd.DataFrame(queries.values()),
        pd.DataFrame(pairs),
        pd.DataFrame(clicks) if clicks else None,
    )


def _check_mapping(columns: Columns, labels: Mapping[str, str], problems: Problems) -> None:
    for table in columns:
        if table not in KNOWN:
            problems.add_file("columns", f"unknown table {table!r}; {nearest(table, KNOWN)}")
    for table in ("items", "pairs"):
        if table not in columns:
            problems.add_file("columns", f"table {table!r} is missing; map its file and columns")
    for table, mapped in columns.items():
        if table not in KNOWN:
            continue
        where = f"columns.{table}"
        for column, target in mapped.items():
            if column != "file" and column not in KNOWN[table]:
                problems.add_file(where, f"unknown column {column!r}; {nearest(column, KNOWN[table])}")
            elif not isinstance(target, str) and column != "cpv":
                problems.add_file(where, f"column {column!r} is mapped to {target!r:.60}; give one name")
        for column in ("file", *REQUIRED[table]):
            if column not in mapped:
                problems.add_file(where, f"column {column!r} is not mapped; it is needed")
    pairs = columns.get("pairs", {})
    if "queries" in columns:
        if "query_id" not in pairs:
            problems.add_file("columns.pairs", "column 'query_id' is not mapped; a pair needs its query")
        for column in {"query", "split"} & set(pairs):
            problems.add_file("columns.pairs", f"map {column!r} under queries, which the mapping has")
    elif "query" not in pairs:
        problems.add_file("columns.pairs", "column 'query' is not mapped; map it, or the table queries")
    for grade, label in labels.items():
        if label not in LABELS:
            problems.add_file("labels", f"{grade!r} becomes {label!r}; use one of {', '.join(LABELS)}")


class _Reader:
    """Reads the tables one after the other; problems and report collect what is seen on the way."""

    def __init__(
        self,
        folder: Path,
        columns: Columns,
        labels: Mapping[str, str],
        max_chars: int,
        problems: Problems,
        report: ReadReport,
    ) -> None:
        self._folder, self._columns, self._max_chars = folder, columns, max_chars
        self._labels = {str(grade): label for grade, label in labels.items()}
        self._problems, self._report = problems, report
        self._split_rows: dict[str, tuple[Row, str]] = {}  # query_id -> its row and the column of its split

    def items(self) -> dict[str, dict[str, Any]]:
        """item_id -> row of the table items."""
        mapped = self._columns["items"]
        items: dict[str, dict[str, Any]] = {}
        first: dict[str, int] = {}
        for row in self._rows("items"):
            item_id = self._key(row, mapped["item_id"], first)
            item: dict[str, Any] = {
                "item_id": item_id,
                "title": self._text(row, mapped["title"], required=True),
            }
            for column in ("shop", "selling_points", "industry"):
                if column in mapped:
                    item[column] = self._text(row, mapped[column])
            if "cpv" in mapped:
                item["cpv"] = self._cpv(row, mapped["cpv"])
            if "skus" in mapped:
                item["skus"] = self._json(row, str(mapped["skus"]), list, '["S", "M"]')
            if "price" in mapped:
                item["price"] = _price(row, str(mapped["price"]), self._problems)
            if "picture" in mapped:
                item["picture"], reason = read_picture(row.values.get(str(mapped["picture"])), self._folder)
                if reason:
                    self._report.note(reason, row.where)
            items[item_id] = item
        return items

    def queries(self) -> dict[str, dict[str, Any]]:
        """query_id -> row of the table queries; empty where the pairs hold the texts."""
        queries: dict[str, dict[str, Any]] = {}
        if "queries" not in self._columns:
            return queries
        mapped = self._columns["queries"]
        first: dict[str, int] = {}
        for row in self._rows("queries"):
            query_id = self._key(row, mapped["query_id"], first)
            query = self._query(row, query_id, self._text(row, mapped["query"], True), mapped)
            if "intent" in mapped:
                query["intent"] = self._word(row, mapped["intent"], tuple(INTENTS))
            if "frequency" in mapped:
                query["frequency"] = _whole(row, str(mapped["frequency"]), self._problems)
            queries[query_id] = query
        return queries

    def pairs(self, items: Collection[str], queries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the table pairs; where no queries were read, adds those that the pairs hold."""
        mapped = self._columns["pairs"]
        derived = "queries" not in self._columns
        pairs: list[dict[str, Any]] = []
        first: dict[str, int] = {}
        for row in self._rows("pairs"):
            if derived:
                query_id = self._derive(row, mapped, queries)
            else:
                query_id = self._reference(row, mapped["query_id"], queries, "queries")
            item_id = self._reference(row, mapped["item_id"], items, "items")
            pair_id = f"{query_id}-{item_id}"
            if pair_id in first:
                text = f"makes the same pair as row {first[pair_id]}; a pair has one label, so drop one"
                self._problems.add(row, str(mapped["item_id"]), text)
            first.setdefault(pair_id, row.number)
            pair = {"pair_id": pair_id, "query_id": query_id, "item_id": item_id}
            pair["label"] = self._label(row, mapped)
            if "mismatch" in mapped:
                pair["mismatch"] = self._text(row, mapped["mismatch"])
            if "kind" in mapped:
                pair["kind"] = self._word(row, mapped["kind"], KINDS)
            pair["split"] = queries[query_id]["split"] if query_id in queries else ""
            pairs.append(pair)
        return pairs

    def clicks(self, items: Collection[str], queries: Collection[str]) -> list[dict[str, Any]]:
        """Rows of the table clicks, none where it is not mapped."""
        if "clicks" not in self._columns:
            return []
        mapped = self._columns["clicks"]
        return [
            {
                "query_id": self._reference(row, mapped["query_id"], queries, "queries"),
                "item_id": self._reference(row, mapped["item_id"], items, "items"),
                "clicks": _whole(row, str(mapped["clicks"]), self._problems),
            }
            for row in self._rows("clicks")
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

    def _rows(self, table: str) -> Any:
        mapped = self._columns[table]
        names: list[str] = []
        for column, target in mapped.items():
            if column != "file":
                names += [target] if isinstance(target, str) else list(target)
        return read_rows(self._folder / str(mapped["file"]), dict.fromkeys(names), self._problems)

    def _text(self, row: Row, column: str | Sequence[str], required: bool = False) -> str:
        text = text_of(row, str(column), self._problems, required)
        return self._cut(row, str(column), text)

    def _cut(self, row: Row, column: str, text: str) -> str:
        if len(text) <= self._max_chars:
            return text
        self._report.note(f"{column} cut to {self._max_chars} characters", row.where)
        return text[: self._max_chars]

    def _key(self, row: Row, column: str | Sequence[str], first: dict[str, int]) -> str:
        key = text_of(row, str(column), self._problems, required=True)
        if key in first:
            text = f"is {key!r:.60}, which row {first[key]} has already; ids stand once"
            self._problems.add(row, str(column), text)
        first.setdefault(key, row.number)
        return key

    def _reference(self, row: Row, column: str | Sequence[str], known: Collection[str], table: str) -> str:
        key = text_of(row, str(column), self._problems, required=True)
        if known and key not in known:  # an empty table has its own problem
            self._problems.add(row, str(column), f"is {key!r:.60}, which {table} do not have")
        return key

    def _derive(self, row: Row, mapped: Mapping[str, Any], queries: dict[str, dict[str, Any]]) -> str:
        text = self._text(row, mapped["query"], required=True)
        query_id = query_key(text)
        if "query_id" in mapped:
            query_id = text_of(row, mapped["query_id"], self._problems, required=True)
        query = self._query(row, query_id, text, mapped)
        known = queries.setdefault(query_id, query)
        for column in ("query", "split"):
            if known[column] != query[column]:
                says = f"is {query[column]!r:.60}; query {query_id!r:.60} had {known[column]!r:.60} before"
                self._problems.add(row, mapped[column], says)
        return query_id

    def _query(self, row: Row, query_id: str, text: str, mapped: Mapping[str, Any]) -> dict[str, Any]:
        if "split" in mapped:
            split = self._word(row, mapped["split"], SPLITS)
            self._split_rows.setdefault(query_id, (row, mapped["split"]))
        else:
            split = split_of(text)
        return {"query_id": query_id, "query": text, "split": split}

    def _word(self, row: Row, column: Any, known: Sequence[str]) -> str:
        word = text_of(row, str(column), self._problems)
        if word not in known:
            self._problems.add(row, str(column), f"is {word!r:.60}; {nearest(word[:60], known)}")
        return word

    def _label(self, row: Row, mapped: Mapping[str, Any]) -> str:
        value = row.values.get(mapped["label"])
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        label = self._labels.get(str(value).strip())
        if label is None:
            fix = nearest(str(value)[:60], self._labels)
            self._problems.add(row, mapped["label"], f"is {value!r:.60}, no known grade; {fix}")
        return label or ""

    def _cpv(self, row: Row, target: str | Sequence[str]) -> str:
        if isinstance(target, str):
            return self._json(row, target, dict, '{"color": "navy"}')
        told = {column: self._cut(row, column, _shown(row, column, self._problems)) for column in target}
        return json.dumps({column: text for column, text in told.items() if text}, ensure_ascii=False)

    def _json(self, row: Row, column: str, kind: type, example: str) -> str:
        value = row.values.get(column)
        if isinstance(value, str) and value.strip():
            with contextlib.suppress(ValueError, RecursionError):  # what stays a text is refused below
                value = json.loads(value)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            value = kind()
        if not isinstance(value, kind):
            self._problems.add(row, column, f"is {value!r:.60}; give JSON such as {example}")
            value = kind()
        text = json.dumps(value, ensure_ascii=False, default=str)
        text = text_of(row._replace(values={column: text}), column, self._problems)
        if len(text) > self._max_chars:
            self._report.note(f"{column} longer than {self._max_chars} characters, left out", row.where)
            return json.dumps(kind())
        return text


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
