"""The streamed world is the generated one, appears whole, and fills its buffers no further than told."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import lore_lib.vertical.stream as stream
import lore_lib.vertical.world as world
from lore_lib.artifacts import read_parquet
from lore_lib.errors import ArtifactError, DataError
from lore_lib.vertical.definition import Vertical, load_vertical, vertical_names
from lore_lib.vertical.stream import SCHEMAS, split_queries, stream_tables
from lore_lib.vertical.tables import check_tables
from lore_lib.vertical.world import generate_tables

SIZES = {"train": 150, "dev": 10, "test": 10}


@pytest.mark.parametrize("label_noise", [0.0, 0.2])
def test_the_files_hold_the_rows_of_the_generated_world(
    vertical: Vertical, tmp_path: Path, label_noise: float
) -> None:
    written = stream_tables(vertical, tmp_path, 120, 17, label_noise=label_noise, rows_in_memory=7)
    made = generate_tables(vertical, split_queries(120, 6), 4, 2, 17, label_noise)
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


def test_the_watcher_hears_of_every_query_and_of_the_end(vertical: Vertical, tmp_path: Path) -> None:
    heard: list[int] = []
    stream_tables(vertical, tmp_path, 30, 17, rows_in_memory=7, watch=heard.append)
    assert heard == [0, 6, 12, 18, 24, 30]


def test_tables_that_are_there_are_left_as_they_are(vertical: Vertical, tmp_path: Path) -> None:
    (tmp_path / "queries.parquet").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match=r"holds queries\.parquet already"):
        stream_tables(vertical, tmp_path, 18, 17)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


def test_an_interrupted_run_leaves_nothing(
    vertical: Vertical, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = stream.world_rows

    def broken(*args: object) -> object:
        for number, row in enumerate(honest(*args)):  # type: ignore[arg-type]
            if number == 20:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(stream, "world_rows", broken)
    with pytest.raises(KeyboardInterrupt):
        stream_tables(vertical, tmp_path, 60, 18)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("items", [18, 19, 100, 1000, 10**6])
def test_every_split_has_a_query_and_no_item_is_missing(items: int) -> None:
    sizes = split_queries(items, 6)
    assert min(sizes.values()) >= 1
    assert 0 <= 6 * sum(sizes.values()) - items < 6


@pytest.mark.parametrize(("items", "per_query"), [(17, 6), (0, 6), (-1, 6), (10, 0)])
def test_too_few_items_are_refused(items: int, per_query: int) -> None:
    with pytest.raises(DataError, match="every split needs a query"):
        split_queries(items, per_query)


def test_a_vertical_with_too_few_queries_is_told_so(
    vertical: Vertical, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "VAIN_DRAWS", 10)  # few draws fall to the dev split
    with pytest.raises(DataError, match=r"ran out of dev queries: \d+ of 50 found; ask for fewer"):
        stream_tables(vertical, tmp_path, 6000, 17)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", vertical_names())
def test_label_noise_moves_train_labels_by_one_level_and_changes_nothing_else(name: str) -> None:
    vertical = load_vertical(name)
    clean, noisy = (generate_tables(vertical, SIZES, 4, 2, 17, share) for share in (0.0, 0.3))
    for table in ("items", "queries", "clicks"):
        pd.testing.assert_frame_equal(clean[table], noisy[table])
    gold, said = clean["pairs"], noisy["pairs"]
    pd.testing.assert_frame_equal(
        gold.drop(columns=["label", "mismatch"]), said.drop(columns=["label", "mismatch"])
    )
    moved = said.label != gold.label
    assert set(said.split[moved]) == {"train"}
    assert moved[said.split == "train"].mean() == pytest.approx(0.3, abs=0.06)  # 3 standard errors of 600
    seen = set()
    for was, now in zip(gold[moved].itertuples(), said[moved].itertuples(), strict=True):
        levels = {step["dimension"]: step["level"] for step in reversed(json.loads(str(now.path)))}
        assert min(levels.values()) == int(str(was.label)[1])
        assert abs(int(str(now.label)[1]) - int(str(was.label)[1])) == 1
        assert (now.mismatch != "") == (now.label == "L2")
        assert now.mismatch == "" or levels[str(now.mismatch)] == int(str(was.label)[1])
        assert now.label != "L1" or was.mismatch == "category"
        seen.add((was.label, now.label))
    assert seen == {("L1", "L2"), ("L2", "L1"), ("L2", "L3"), ("L3", "L2"), ("L3", "L4"), ("L4", "L3")}
    assert (said.mismatch[~moved] == gold.mismatch[~moved]).all()


def test_more_label_noise_keeps_the_wrong_labels_of_less(vertical: Vertical) -> None:
    gold, little, much = (
        generate_tables(vertical, SIZES, 4, 0, 17, share)["pairs"][["label", "mismatch"]]
        for share in (0.0, 0.1, 0.5)
    )
    wrong = little.label != gold.label
    assert wrong.any()
    pd.testing.assert_frame_equal(little[wrong], much[wrong])
    assert (much.label != gold.label).sum() > 2 * wrong.sum()
