"""A generated world of any size, written to Parquet as it is made."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lore_lib.artifacts import explain_disk, make_folder, put_in_place
from lore_lib.errors import ArtifactError, DataError
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.world import world_rows

SPLIT_SHARES = {"train": 0.85, "dev": 0.05, "test": 0.10}
"""Share of the queries in each split, as queries fall by the hash of their meaning."""

_TEXT, _INT = pa.string(), pa.int64()

SCHEMAS: dict[str, pa.Schema] = {
    "items": pa.schema(
        [(name, _TEXT) for name in ("item_id", "title", "cpv", "skus", "shop")]
        + [("price", pa.float64()), ("selling_points", _TEXT), ("industry", _TEXT), ("truth", _TEXT)]
        + [("picture", pa.binary())]
    ),
    "queries": pa.schema(
        [(name, _TEXT) for name in ("query_id", "query", "intent")]
        + [("frequency", _INT), ("demands", _TEXT), ("split", _TEXT)]
    ),
    "clicks": pa.schema([("query_id", _TEXT), ("item_id", _TEXT), ("clicks", _INT)]),
    "pairs": pa.schema(
        [
            (name, _TEXT)
            for name in ("pair_id", "query_id", "item_id", "label", "mismatch", "path", "kind", "split")
        ]
    ),
}
"""Columns of each file. ``pairs`` stands last, because its presence tells readers to use the files."""


def stream_tables(
    vertical: Vertical,
    folder: Path,
    items: int,
    seed: int,
    pairs_per_query: int = 4,
    clicked_per_query: int = 2,
    label_noise: float = 0.0,
    rows_in_memory: int = 10_000,
    watch: Callable[[int], object] = lambda items: None,
) -> dict[str, int]:
    """Write ``items``, ``queries``, ``pairs`` and ``clicks`` as Parquet files, in bounded memory.

    The rows are those of :func:`lore_lib.vertical.world.generate_tables` for the same sizes. Files are
    written into a hidden folder beside their place and moved when all are whole, ``pairs.parquet`` last; an
    interrupted run leaves nothing.
    Beside the buffers, about 100 bytes per query stay in memory, so that no query is asked twice.

    Args:
        vertical: the vertical.
        folder: where the files go; it must hold none of them yet.
        items: at least so many; whole queries are made.
        seed: root seed.
        pairs_per_query: judged items per query.
        clicked_per_query: further fully matching items per query that only the click log knows.
        label_noise: share of the train pairs, 0 to 1, whose label is replaced by a neighbouring one.
        rows_in_memory: rows of a table that are buffered, then written as one row group.
        watch: told at each query, and at the end, how many items are made.

    Returns:
        Rows written per table.

    Raises:
        DataError: fewer items than one query per split needs, or more queries than the vertical has.
        ArtifactError: a table is there already, the disk is full or the folder cannot be written.
    """
    sizes = split_queries(items, pairs_per_query + clicked_per_query)
    if there := [file.name for name in SCHEMAS if (file := folder / f"{name}.parquet").exists()]:
        said = f"{folder} holds {', '.join(there)} already and is left as it is"
        raise ArtifactError(f"{said}; choose another folder, or remove these files")
    written = dict.fromkeys(SCHEMAS, 0)
    make_folder(folder)
    with explain_disk(folder), tempfile.TemporaryDirectory(prefix=".stream-", dir=folder) as scratch:
        with ExitStack() as files:
            writers = {
                name: files.enter_context(pq.ParquetWriter(Path(scratch) / f"{name}.parquet", schema))
                for name, schema in SCHEMAS.items()
            }
            buffers: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}

            def flush(name: str) -> None:
                writers[name].write_table(pa.Table.from_pylist(buffers[name], SCHEMAS[name]))
                written[name] += len(buffers[name])
                buffers[name].clear()

            rows = world_rows(vertical, sizes, pairs_per_query, clicked_per_query, seed, label_noise)
            for name, row in rows:
                buffers[name].append(row)
                if name == "queries":
                    watch(written["items"] + len(buffers["items"]))
                if len(buffers[name]) == rows_in_memory:
                    flush(name)
            for name in SCHEMAS:
                flush(name)
            watch(written["items"])
        for name in SCHEMAS:
            put_in_place(Path(scratch) / f"{name}.parquet", folder / f"{name}.parquet")
    return written


def split_queries(items: int, items_per_query: int) -> dict[str, int]:
    """Queries per split for at least ``items`` items.

    >>> split_queries(1200, 6)
    {'train': 170, 'dev': 10, 'test': 20}

    Raises:
        DataError: no items per query, or fewer items than one query per split needs.
    """
    least = len(SPLIT_SHARES) * max(items_per_query, 1)
    if items_per_query < 1 or items < least:
        said = f"{items} items at {items_per_query} per query"
        raise DataError(f"{said}; every split needs a query, so ask for {least} or more")
    queries = math.ceil(items / items_per_query)
    dev, test = (max(1, round(SPLIT_SHARES[name] * queries)) for name in ("dev", "test"))
    return {"train": queries - dev - test, "dev": dev, "test": test}
