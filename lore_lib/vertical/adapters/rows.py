"""Rows of CSV, JSON-lines, Parquet and Arrow files as a stream; each knows its file and number.

Text files are UTF-8, with or without a byte order mark, or UTF-16 with one. Bytes that are no UTF-8 are found
in the field that holds them, so that one file of mixed encodings gives one list of its bad fields.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lore_lib.errors import DataError, nearest, problem_count

SHOWN = 20  # problems of one field of one file that an error spells out
FIRST = 5  # places that the summary of a report shows for one reason
LISTED = 100_000  # things left out that a report lists; all are counted
MAX_FIELD = 64 * 2**20  # characters of one CSV field, which may be a picture in base64
DELIMITERS = ",\t;|"
_SHEETS = (".xls", ".xlsx", ".xlsm", ".ods")
_SHEET_STARTS = (
    b"PK\x03\x04",
    b"\xd0\xcf\x11\xe0",
)  # of a ZIP archive, as newer workbooks are, and of older ones

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_DAMAGE = (OSError, EOFError, zlib.error, UnicodeError, pa.ArrowException)


class Row(NamedTuple):
    """One row: its file's name, its number (line of a text file, else counted from 1), column -> value."""

    file: str
    number: int
    values: dict[str, Any]

    @property
    def where(self) -> str:
        """``file:number``."""
        return f"{self.file}:{self.number}"


class Left(NamedTuple):
    """Something that a reader left out, cut or changed by choice.

    Attributes:
        where: ``file:row``, or an id where rows were merged.
        field: the column; "" for the whole row.
        reason: what was done, and why.
        rows: how many rows it stands for.
    """

    where: str
    field: str
    reason: str
    rows: int

    def __str__(self) -> str:
        told = ": ".join(filter(None, (self.where, self.field, self.reason)))
        return told + (f" ({self.rows} rows)" if self.rows > 1 else "")


@dataclass
class ReadReport:
    """What a reader left out, cut or changed by choice: everything counted, the first ``LISTED`` listed."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)
    listed: list[Left] = field(default_factory=list)

    def note(self, reason: str, where: str, rows: int = 1, column: str = "") -> None:
        """Count `rows` more for `reason`; `where` names the first of them, `column` the field concerned."""
        self.counts[reason] = self.counts.get(reason, 0) + rows
        places = self.first.setdefault(reason, [])
        if len(places) < FIRST:
            places.append(where)
        if len(self.listed) < LISTED:
            self.listed.append(Left(where, column, reason, rows))

    def table(self) -> pd.DataFrame:
        """Columns reason, rows, first (places or ids, separated by blanks)."""
        rows = [(reason, count, " ".join(self.first[reason])) for reason, count in self.counts.items()]
        return pd.DataFrame(rows, columns=["reason", "rows", "first"])

    def list_table(self) -> pd.DataFrame:
        """One row for each of ``listed``: where, field, reason, rows."""
        return pd.DataFrame(self.listed, columns=list(Left._fields))

    def __str__(self) -> str:
        rows = (
            f"{count} x {reason} ({' '.join(self.first[reason])})" for reason, count in self.counts.items()
        )
        return "\n".join(rows) or "nothing left out"


class Fault(NamedTuple):
    """One thing that is wrong: file, row (0: the file as a whole), column ("": all of them), what to mend."""

    file: str
    row: int
    column: str
    text: str

    def __str__(self) -> str:
        if not self.row:
            return f"{self.file}: {self.text}"
        field = f"field {self.column!r} " if self.column else ""
        return f"{self.file}:{self.row}: {field}{self.text}"


class Problems:
    """All that is wrong with some files, collected in one pass and raised as one error.

    Args:
        where: what is being read; begins the error.
    """

    def __init__(self, where: Path | str) -> None:
        self.where = where
        self._faults: dict[tuple[str, str], list[Fault]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __iter__(self) -> Iterator[Fault]:
        """What was added, by file and field; at most ``SHOWN`` of each are spelled out, the rest counted."""
        for kind, faults in self._faults.items():
            yield from faults
            if more := self._counts[kind] - len(faults):
                text = "is wrong in" if faults[-1].column else "and"
                yield faults[-1]._replace(text=f"{text} {more} more rows")

    def add(self, row: Row, column: str, text: str) -> None:
        """A field breaks a rule; `text` says what was found and the nearest fix."""
        self._add(Fault(row.file, row.number, column, text))

    def add_row(self, file: str, number: int, text: str) -> None:
        """A whole row cannot be read."""
        self._add(Fault(file, number, "", text))

    def add_file(self, file: str, text: str) -> None:
        """A file cannot be used."""
        self._add(Fault(file, 0, "", text))

    def add_column(self, file: str, column: str, text: str) -> None:
        """A column cannot be used; this takes the place of what was added of its fields."""
        self._faults.pop((file, column), None)
        self._counts.pop((file, column), None)
        self._add(Fault(file, 0, column, text))

    def name_of(self, path: Path) -> str:
        """The file as problems name it: inside of ``where`` by its path from there, else by its name."""
        inside = isinstance(self.where, Path) and path.is_relative_to(self.where)
        return str(path.relative_to(self.where)) if inside else path.name

    def _add(self, fault: Fault) -> None:
        kind = (fault.file, fault.column)
        if fault in self._faults.get(kind, ()):  # one file may serve two tables
            return
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= SHOWN:
            self._faults.setdefault(kind, []).append(fault)

    def raise_any(self) -> None:
        """Raise what was collected.

        Raises:
            DataError: anything was added; at most ``SHOWN`` problems per field of a file are spelled out.
        """
        if self._counts:
            lines = [f"{self.where}: {problem_count(len(self))}:", *map(str, self)]
            raise DataError("\n  ".join(lines))


def visible(text: str) -> bool:
    """Whether anything in the text can be seen: zero-width characters and blanks alone are no text.

    >>> visible("\\u200b \\u200f"), visible("\\u200bred")
    (False, True)
    """
    return any(not c.isspace() and unicodedata.category(c)[0] != "C" for c in text)


def text_of(row: Row, column: str, problems: Problems, required: bool = False) -> str:
    """The field as text: "" for a missing value, digits for a whole number, else the text untouched."""
    value = row.values.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        value = ""
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        problems.add(row, column, f"is {value!r:.60}, a {type(value).__name__}; give text")
        return ""
    if _LONE_SURROGATE.search(value):
        shown = value.encode("ascii", "backslashreplace").decode()
        problems.add(row, column, f"holds what is no UTF-8 ({shown:.60}); save the file as UTF-8")
        return ""
    if required and not visible(value):
        problems.add(row, column, f"is {value!r:.60}; every row needs it")
    return value


def read_rows(
    path: Path, columns: Collection[str], problems: Problems, delimiter: str = "", batch_rows: int = 1024
) -> Iterator[Row]:
    """Rows of a file one by one; what cannot be read is added to `problems` and passed over.

    The format follows from the suffix: .csv, .tsv, .jsonl or .ndjson (each also with .gz), .parquet, .arrow.
    Memory holds one row of a text file, `batch_rows` rows of a Parquet or Arrow file.

    Args:
        path: the file.
        columns: columns that must be there; of Parquet and Arrow files no others are read.
        delimiter: of a CSV file; "" takes the one of ``DELIMITERS`` that fits the header best.
    """
    name = problems.name_of(path)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    reader = _READERS.get(kind)
    if reader is None:
        fix = "export each sheet as CSV in UTF-8" if kind in _SHEETS else f"use one of {', '.join(_READERS)}"
        text = f"suffix {kind!r} is unknown; {fix}"
        problems.add_file(name, text)
        return
    if _absent(path, problems):
        return
    before, number = len(problems), 0
    try:
        mark = "\t" if kind == ".tsv" else delimiter
        for number, values in reader(_File(path, columns, problems, mark, batch_rows)):
            yield Row(name, number, values)
    except _DAMAGE as error:
        problems.add_file(name, _damage(number, error))
    if number == 0 and len(problems) == before:
        problems.add_file(name, "the table is empty; give at least one row")


def _absent(path: Path, problems: Problems) -> bool:
    if path.is_file():
        return False
    there = sorted(p.name for p in path.parent.iterdir() if p.is_file()) if path.parent.is_dir() else []
    hint = nearest(path.name, there) if there else "there are no files at all"
    problems.add_file(problems.name_of(path), f"no such file in {path.parent}; {hint}")
    return True


def _damage(number: int, error: BaseException) -> str:
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"damaged after row {number} ({cause:.200}); fetch or export it again"


class _File(NamedTuple):
    """What a reader of one format needs."""

    path: Path
    columns: Collection[str]
    problems: Problems
    delimiter: str
    batch_rows: int

    @property
    def name(self) -> str:
        """The file as problems name it."""
        return self.problems.name_of(self.path)

    def lacks(self, found: Sequence[str]) -> bool:
        """Whether a wanted column is not among `found`; each is added to the problems."""
        lost = [column for column in self.columns if column not in found]
        shown = [column if column.isprintable() else ascii(column)[1:-1] for column in found]
        note = "; save the file as UTF-8" if _LONE_SURROGATE.search("".join(found)) else ""
        for column in lost:
            self.problems.add_column(
                self.name, column, f"no column {column!r}; {nearest(column, shown)}{note}"
            )
        return bool(lost)

    def mistypes(self, schema: pa.Schema, whole: Collection[str]) -> bool:
        """Whether a wanted column is not of whole numbers, for those in `whole`, or not of text.

        Each is added to the problems.
        """
        wrong = False
        for column in self.columns:
            kind, number = schema.field(column).type, column in whole
            fits = (pa.types.is_integer,) if number else (pa.types.is_string, pa.types.is_large_string)
            if not any(is_one(kind) for is_one in (*fits, pa.types.is_null)):
                text = f"is of type {kind}; write it as {'whole numbers' if number else 'text'}"
                self.problems.add_column(self.name, column, text)
                wrong = True
        return wrong

    def open_text(self) -> IO[str] | None:
        """The file as text, or None where its first bytes say that it is none of the encodings read here."""
        opener = gzip.open if self.path.suffix.lower() == ".gz" else open
        binary = io.BufferedReader(cast(io.RawIOBase, opener(self.path, "rb")))
        head = binary.peek(4096)[:4096]
        encoding = "utf-8"
        if head.startswith(codecs.BOM_UTF8):
            encoding = "utf-8-sig"
        elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "utf-16"
        if head.startswith(codecs.BOM_UTF32_LE) or (encoding != "utf-16" and b"\0" in head):
            binary.close()
            text = "is no text in UTF-8, or in UTF-16 with a byte order mark; save it as UTF-8"
            if head.startswith(_SHEET_STARTS):
                text = "is a workbook or an archive, whatever its name; export each sheet as CSV in UTF-8"
            self.problems.add_file(self.name, text)
            return None
        errors = "strict" if encoding == "utf-16" else "surrogateescape"
        return io.TextIOWrapper(binary, encoding, errors, newline="")


_Numbered = Iterator[tuple[int, dict[str, Any]]]


def _csv_rows(file: _File) -> _Numbered:
    text = file.open_text()
    if text is None:
        return
    with text:
        csv.field_size_limit(MAX_FIELD)  # the standard library has one limit for the whole process
        first = text.readline()
        reader = csv.reader(
            itertools.chain([first], text),
            delimiter=file.delimiter or _delimiter(first, file.columns),
            strict=True,
        )
        begins = 1
        try:
            header = next(reader, [])
            if not header or file.lacks(header):
                return
            if twice := sorted({name for name in header if header.count(name) > 1}):
                file.problems.add_file(file.name, f"two columns are named {twice[0]!r}; rename one")
                return
            begins = reader.line_num + 1
            for values in reader:
                if len(values) == len(header):
                    yield begins, dict(zip(header, values, strict=True))
                elif values:
                    found = f"{len(values)} fields under {len(header)} columns"
                    fix = "quote a field that holds the delimiter or a line break"
                    file.problems.add_row(file.name, begins, f"{found}; {fix}")
                begins = reader.line_num + 1
        except csv.Error as error:
            fix = f"not CSV from here on ({error}); look for an unclosed quote"
            file.problems.add_row(file.name, begins, fix)


def _delimiter(header: str, columns: Collection[str]) -> str:
    def fit(mark: str) -> tuple[int, int]:
        fields = next(csv.reader([header], delimiter=mark), [])
        return len(set(columns) & set(fields)), len(fields)

    return max(DELIMITERS, key=fit)


def _json_rows(file: _File) -> _Numbered:
    text = file.open_text()
    if text is None:
        return
    seen: dict[str, None] = {}
    with text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                file.problems.add_row(file.name, number, f"not JSON ({error!s:.200})")
                continue
            if not isinstance(values, dict):
                file.problems.add_row(file.name, number, f"a {type(values).__name__}, not a JSON object")
                continue
            seen |= dict.fromkeys(values)
            yield number, values
    if seen:
        file.lacks(list(seen))


def _parquet_rows(file: _File) -> _Numbered:
    batches = parquet_batches(file.path, file.columns, file.problems, file.batch_rows)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    return enumerate(rows, start=1)


def _arrow_rows(file: _File) -> _Numbered:
    with pa.memory_map(str(file.path)) as source, pa.ipc.open_stream(source) as reader:
        if file.lacks(reader.schema.names):
            return
        chosen = (batch.select(list(file.columns)) for batch in reader)
        parts = (
            b.slice(start, file.batch_rows) for b in chosen for start in range(0, len(b), file.batch_rows)
        )
        yield from enumerate((values for part in parts for values in part.to_pylist()), start=1)


_READERS: dict[str, Callable[[_File], _Numbered]] = {
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}


def parquet_batches(
    path: Path,
    columns: Collection[str],
    problems: Problems,
    batch_rows: int,
    whole: Collection[str] | None = None,
) -> Iterator[Any]:
    """Record batches of the named columns.

    A missing file or column, a column of a wrong type and damage are added to `problems` and end the stream.
    Column chunks are read through small buffers, not whole, so that memory stays flat even in a file of one
    huge row group.

    Args:
        path: the file.
        columns: those to read.
        problems: takes what is wrong.
        batch_rows: rows of a batch.
        whole: columns of whole numbers, all others being text; None takes any type.
    """
    if _absent(path, problems):
        return
    number = 0
    try:
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as parquet:
            file, schema = _File(path, columns, problems, "", batch_rows), parquet.schema_arrow
            if file.lacks(schema.names) or (whole is not None and file.mistypes(schema, whole)):
                return
            for batch in parquet.iter_batches(batch_rows, columns=list(columns), use_threads=False):
                yield batch
                number += len(batch)
    except _DAMAGE as error:
        problems.add_file(problems.name_of(path), _damage(number, error))
