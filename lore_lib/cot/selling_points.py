"""What merchants say and what shoppers clicked, as sorted Arrow columns: built once, then memory-mapped.

No row of the catalogue or of the click log becomes a Python object: a log of 10^8 clicks is one sorted list
of 32-bit numbers per query. Texts are kept once per shop: what a shop says of a thousand items, it says once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lore_lib.artifacts import atomic_write
from lore_lib.errors import DataError, nearest

Rows = pd.DataFrame | Iterable[pa.RecordBatch]
"""A table, whole or as a stream, such as ``pyarrow.parquet.ParquetFile(path).iter_batches(columns=...)``."""

TextRows = NDArray[np.int32]
"""Rows of the table of texts."""

LONGEST_TEXT = 1000
"""Characters of a selling point that are kept; no seller fills an index or a prompt."""

FILES = ("texts.arrow", "items.arrow", "queries.arrow")

_BLOCK = 1 << 20  # click rows joined to the items at a time
_STRING = pa.large_string()


@dataclass(frozen=True)
class SellingPoints:
    """The texts of a catalogue, and which of them shoppers clicked after which query.

    Attributes:
        texts: columns ``text`` (large_string) and ``shop`` (int32, a number per shop; an item whose shop is
            not stated counts as a shop of its own). No shop has the same text twice.
        items: columns ``item_id`` (large_string, sorted) and ``text`` (int32, its row in ``texts``).
        queries: columns ``query_id`` (large_string, sorted) and ``clicked`` (large_list of int32, rows of
            ``texts``, most clicks first, then in the order of item ids).
    """

    texts: pa.RecordBatch
    items: pa.RecordBatch
    queries: pa.RecordBatch

    @classmethod
    def build(cls, items: Rows, clicks: Rows, held_out: Collection[str] = ()) -> SellingPoints:
        """Sort a catalogue and its click log.

        Items without selling points leave no trace, nor do their clicks.

        Args:
            items: item_id, selling_points and, where there is one, shop.
            clicks: query_id, item_id, clicks; several rows of a query and item add up.
            held_out: ids of items that are left out with all their clicks.

        Raises:
            DataError: a column is missing, an item_id comes back.
        """
        told = _told(items, held_out)
        texts, listed = _distinct_texts(told)
        return cls(texts, listed, _clicked(clicks, listed))

    def text(self, row: int) -> str:
        """The text in a row."""
        return str(self.texts.column("text")[row].as_py())

    @property
    def shops(self) -> NDArray[np.int32]:
        """The shop of each text."""
        shops: NDArray[np.int32] = self.texts.column("shop").to_numpy()
        return shops

    def row_of(self, item_id: str) -> int | None:
        """Row of an item's text; None when it has none here."""
        at = _position(self.items.column("item_id"), item_id)
        return None if at is None else int(self.items.column("text")[at].as_py())

    def clicked(self, query_id: str) -> TextRows:
        """Rows of the texts of the items clicked after a query, most clicks first."""
        at = _position(self.queries.column("query_id"), query_id)
        if at is None:
            return np.empty(0, np.int32)
        rows: TextRows = self.queries.column("clicked")[at].values.to_numpy()
        return rows

    def save(self, folder: Path) -> list[Path]:
        """Write :data:`FILES` into ``folder``, each whole or not at all; returns their paths."""
        for name, batch in zip(FILES, (self.texts, self.items, self.queries), strict=True):

            def write(part: Path, batch: pa.RecordBatch = batch) -> None:
                with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                    writer.write_batch(batch)

            atomic_write(folder / name, write)
        return [folder / name for name in FILES]

    @classmethod
    def load(cls, folder: Path, mmap: bool = True) -> SellingPoints:
        """Open what :meth:`save` wrote; with ``mmap`` a page is read when it is first needed."""
        opener = pa.memory_map if mmap else pa.OSFile
        return cls(*(pa.ipc.open_file(opener(str(folder / name), "r")).get_batch(0) for name in FILES))


def _told(items: Rows, held_out: Collection[str]) -> pa.Table:
    """item_id, shop and text of the items that say something and may be used, sorted by item_id."""
    apart = pa.array(sorted(held_out), _STRING)
    kept = [pa.table({name: pa.array([], _STRING) for name in ("item_id", "shop", "text")})]
    for batch in _batches(items, "items", {"item_id": _STRING, "selling_points": _STRING, "shop": _STRING}):
        item_id, shop = batch.column("item_id"), pc.fill_null(batch.column("shop"), "")
        text = pc.utf8_trim_whitespace(pc.fill_null(batch.column("selling_points"), ""))
        shop = pc.if_else(pc.equal(shop, ""), _joined("item ", item_id), _joined("shop ", shop))
        one = pa.table(
            {"item_id": item_id, "shop": shop, "text": pc.utf8_slice_codeunits(text, 0, LONGEST_TEXT)}
        )
        kept.append(
            one.filter(pc.and_(pc.not_equal(text, ""), pc.invert(pc.is_in(item_id, value_set=apart))))
        )
    told = pa.concat_tables(kept).combine_chunks()
    told = told.take(pc.array_sort_indices(_one(told["item_id"])))
    ids = _one(told["item_id"])
    twice = pc.filter(ids[1:], pc.equal(ids[1:], ids[:-1]))
    if len(twice):
        raise DataError(
            f"items: {len(twice)} repeated item_id, first {twice[0].as_py()!r}; keep one row of each"
        )
    return told


def _distinct_texts(told: pa.Table) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The texts, each once per shop, in the order of the first item that has them; and the items."""
    shop = _one(told["shop"]).dictionary_encode().indices
    row = _joined(shop, " ", _one(told["text"])).dictionary_encode().indices
    _, first = np.unique(row.to_numpy(), return_index=True)
    texts = {"text": _one(told["text"]).take(first), "shop": shop.take(first)}
    return pa.record_batch(texts), pa.record_batch({"item_id": _one(told["item_id"]), "text": row})


def _clicked(clicks: Rows, items: pa.RecordBatch) -> pa.RecordBatch:
    """query_id and the rows of the clicked texts, in the order of ``SellingPoints.queries``."""
    ids, row_of = items.column("item_id"), items.column("text").to_numpy()
    names = [pa.array([], _STRING).dictionary_encode()]
    rows, counts = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    wanted = {"query_id": _STRING, "item_id": _STRING, "clicks": pa.int64()}
    for batch in _blocks(_batches(clicks, "clicks", wanted)):
        at = pc.index_in(batch["item_id"], value_set=ids)
        good = pc.and_(
            pc.is_valid(at), pc.and_(pc.is_valid(batch["query_id"]), pc.greater(batch["clicks"], 0))
        )
        batch, at = batch.filter(good), at.filter(good)
        names.append(_one(batch["query_id"]).dictionary_encode())
        rows.append(row_of[at.to_numpy()])
        counts.append(batch["clicks"].to_numpy())
    encoded = pa.chunked_array(names).unify_dictionaries()
    words = encoded.chunk(0).dictionary
    order = pc.array_sort_indices(words)
    rank = np.empty(len(words), np.int32)
    rank[order.to_numpy()] = np.arange(len(words), dtype=np.int32)
    query = rank[np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])]
    log = pa.table({"query": query, "row": np.concatenate(rows), "clicks": np.concatenate(counts)})
    sums = log.group_by(["query", "row"]).aggregate([("clicks", "sum")])
    query, row = sums["query"].to_numpy(), sums["row"].to_numpy()
    best_first = np.lexsort((row, -sums["clicks_sum"].to_numpy(), query))
    ends = np.cumsum(np.bincount(query, minlength=len(words)))
    lists = pa.LargeListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]), pa.int64()), pa.array(row[best_first], pa.int32())
    )
    return pa.record_batch({"query_id": words.take(order), "clicked": lists})


def _batches(rows: Rows, table: str, wanted: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """The wanted columns in their types; a missing ``shop`` is null.

    Raises:
        DataError: another column is missing, or does not have its type.
    """
    if isinstance(rows, pd.DataFrame):
        _require(table, wanted, list(rows.columns))
        known = [name for name in wanted if name in rows.columns]
        batches = iter(pa.Table.from_pandas(rows[known], preserve_index=False).to_batches())
    else:
        batches = iter(rows)
    for batch in batches:
        _require(table, wanted, batch.schema.names)
        columns = {"shop": pa.nulls(batch.num_rows, _STRING)} if "shop" in wanted else {}
        for name in [name for name in wanted if name in batch.schema.names]:
            try:
                columns[name] = batch.column(name).cast(wanted[name])
            except pa.ArrowInvalid as error:
                raise DataError(f"{table}: {name!r} is not {wanted[name]} throughout: {error}") from error
        yield pa.record_batch(columns)


def _require(table: str, wanted: Iterable[str], found: list[str]) -> None:
    if missing := [name for name in wanted if name not in found and name != "shop"]:
        hints = [f"no column {name!r} ({nearest(name, found)})" for name in missing]
        raise DataError(f"{table}: {'; '.join(hints)}")


def _blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Small batches together, because a join hashes the item ids once for each."""
    block: list[pa.RecordBatch] = []
    for batch in batches:
        block.append(batch)
        if sum(part.num_rows for part in block) >= _BLOCK:
            yield pa.Table.from_batches(block)
            block = []
    if block:
        yield pa.Table.from_batches(block)


def _position(keys: pa.LargeStringArray, key: str) -> int | None:
    """Where a key stands in a sorted column (UTF-8 sorts as Python's strings do)."""
    at = bisect_left(keys, key, key=lambda scalar: scalar.as_py())
    return at if at < len(keys) and keys[at].as_py() == key else None


def _one(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else joined.chunk(0)


def _joined(*parts: pa.Array | str) -> pa.Array:
    """Strings of columns and constants put together, row by row."""
    typed = [pa.scalar(part, _STRING) if isinstance(part, str) else part.cast(_STRING) for part in parts]
    return pc.binary_join_element_wise(*typed, pa.scalar("", _STRING))
