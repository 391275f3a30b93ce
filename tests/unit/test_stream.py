"""The streamed world is the generated one, appears whole, and fills its buffers no further than told."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import lore_lib.vertical.stream as stream
from lore_lib.artifacts import read_parquet
from lore_lib.errors import DataError
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.stream import SCHEMAS, split_queries, stream_tables
from lore_lib.vertical.tables import check_tables
from lore_lib.vertical.world import generate_tables


def test_the_files_hold_the_rows_of_the_generated_world(vertical: Vertical, tmp_path: Path) -> None:
    written = stream_tables(vertical, tmp_path, 120, 17, rows_in_memory=7)
    made = generate_tables(vertical, split_queries(120, 6), 4, 2, 17)
    tables = {name: read_parquet(tmp_path / f"{name}.parquet") for name in SCHEMAS}
    check_tables(tables, tmp_path)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, made[name][table.columns.tolist()], check_dtype=False)
        assert written[name] == len(table)
        assert set(made[name].columns) == set(table.columns)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.parquet" for name in SCHEMAS}


def test_a_row_group_holds_no_more_than_the_buffer(vertical: Vertical, tmp_path: Path) -> None:
    stream_tables(vertical, tmp_path, 60, 17, rows_in_memory=9)
    meta = pq.ParquetFile(tmp_path / "items.parquet").metadata
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [9] * 6 + [6]


def test_an_interrupted_run_leaves_the_old_files(
    vertical: Vertical, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_tables(vertical, tmp_path, 18, 17)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    honest = stream.world_rows

    def broken(*args: object) -> object:
        for number, row in enumerate(honest(*args)):  # type: ignore[arg-type]
            if number == 20:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(stream, "world_rows", broken)
    with pytest.raises(KeyboardInterrupt):
        stream_tables(vertical, tmp_path, 60, 18)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("items", [18, 19, 100, 1000, 10**6])
def test_every_split_has_a_query_and_no_item_is_missing(items: int) -> None:
    sizes = split_queries(items, 6)
    assert min(sizes.values()) >= 1
    assert 0 <= 6 * sum(sizes.values()) - items < 6


@pytest.mark.parametrize(("items", "per_query"), [(17, 6), (0, 6), (-1, 6), (10, 0)])
def test_too_few_items_are_refused(items: int, per_query: int) -> None:
    with pytest.raises(DataError, match="every split needs a query"):
        split_queries(items, per_query)
