"""Speed and memory of writing a generated world, beside making its tables whole.

    python benchmarks/bench_generate.py [--largest 1000000]

Items of `apparel_home`, six to a query, with their queries, pairs and clicks, as Parquet files; ``ways.py``
says what is measured.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from ways import print_table, sizes_asked

from lore_lib.artifacts import write_parquet
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.stream import split_queries, stream_tables
from lore_lib.vertical.world import generate_tables

WAYS = ("generate_tables, then written", "stream_tables")
JUDGED, CLICKED, SEED = 4, 2, 17


def write(way: str, vertical: Vertical, items: int, folder: Path) -> None:
    """Make the world and write its files."""
    if way == "stream_tables":
        stream_tables(vertical, folder, items, SEED, JUDGED, CLICKED)
        return
    tables = generate_tables(vertical, split_queries(items, JUDGED + CLICKED), JUDGED, CLICKED, SEED)
    for name, table in tables.items():
        write_parquet(table, folder / f"{name}.parquet")


def write_and_drop(way: str, vertical: Vertical, items: int) -> None:
    """The files go with their folder."""
    with tempfile.TemporaryDirectory() as folder:
        write(way, vertical, items, Path(folder))


def prepare(way: str, items: int) -> Callable[[], None]:
    """The vertical read, with every import done."""
    vertical = load_vertical("apparel_home")
    write_and_drop(way, vertical, 100)
    return functools.partial(write_and_drop, way, vertical, items)


if __name__ == "__main__":
    print_table(WAYS, sizes_asked(__doc__), prepare, "items")
