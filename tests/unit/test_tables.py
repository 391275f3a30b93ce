"""The tables' contract: all that is wrong is listed in one error, and own tables win over the world."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from lore_lib.artifacts import project_root, write_parquet
from lore_lib.config import WorldConfig
from lore_lib.errors import DataError
from lore_lib.vertical.contract import split_sharing
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.schema import Demand, dump_demands
from lore_lib.vertical.tables import COLUMNS, check_tables, load_tables

Tables = dict[str, pd.DataFrame]


def copied(tables: Tables) -> Tables:
    return {name: table.copy() for name, table in tables.items()}


def problems_of(tables: Tables) -> str:
    with pytest.raises(DataError) as caught:
        check_tables(tables, "here")
    assert str(caught.value).startswith("here: ")
    return str(caught.value)


def test_good_tables_come_back_unchanged(world_tables: Tables) -> None:
    assert check_tables(world_tables, "here") is world_tables


def test_every_missing_column_is_listed_with_those_found(world_tables: Tables) -> None:
    broken = copied(world_tables)
    broken["items"] = broken["items"].drop(columns=["title", "price"])
    broken["clicks"] = broken["clicks"].drop(columns="clicks")
    said = problems_of(broken)
    assert "3 problems" in said
    assert "items: missing column 'title' (found item_id, cpv" in said
    assert "clicks: missing column 'clicks'" in said


def test_every_fault_of_content_is_listed_in_one_error(world_tables: Tables) -> None:
    broken = copied(world_tables)
    pairs, items, queries = broken["pairs"], broken["items"], broken["queries"]
    pairs.loc[0, "label"] = "L5"
    pairs.loc[1, "kind"] = "hard"
    pairs.loc[2, "split"] = "validation"
    pairs.loc[3, "query_id"] = "nobody"
    pairs.loc[4, "item_id"] = "nothing"
    pairs.loc[6, "pair_id"] = str(pairs.pair_id[5])
    pairs.loc[7, "split"] = "test"
    queries.loc[0, "intent"] = "jargon"
    items["price"] = items.price.astype(object)
    items.loc[0, "price"] = "cheap"
    items.loc[1, "price"] = -1.0
    items.loc[2, "title"] = None
    items.loc[3, "price"] = float("inf")
    items.loc[4, "price"] = float("nan")
    items.loc[[5, 6], "cpv"] = ["{color: navy}", "[]"]
    items.loc[[7, 8, 9], "skus"] = ["{}", "", "[" * 100_000]
    items.loc[[10, 11], "picture"] = [b"GIF89a", "path.png"]
    broken["clicks"]["clicks"] = broken["clicks"].clicks.astype(object)
    broken["clicks"].loc[[0, 1, 2], "clicks"] = [-1, 0.5, "many"]
    said = problems_of(broken)
    for part in (
        "pairs: 1 repeated pair_id",
        "pairs: 1 rows with an unknown label, first 'train-p00000-0' has 'L5'; use one of L1, L2, L3, L4",
        "unknown kind, first 'train-p00000-1' has 'hard'; use one of plain, knowledge, visual, boundary",
        "unknown split, first 'train-p00000-2' has 'validation'",
        "queries: 1 rows with an unknown intent, first 'train-q00000' has 'jargon'",
        "pairs: 1 rows name a query_id that queries does not have, first 'train-p00000-3'",
        "pairs: 1 rows name a item_id that items does not have, first 'train-p00001-0'",
        "in another split than their query",
        "items: 4 prices are no number of at least 0, first item 'train-i00000-0'",
        "items: 2 cpv are no JSON object, first item 'train-i00000-5'",
        "items: 3 skus are no JSON list, first item 'train-i00001-1'",
        "items: 2 pictures are no bytes of a PNG or JPEG, first item 'train-i00001-4'",
        "clicks: 3 rows have no whole number of clicks, first of query 'train-q00000'",
        "items: 1 rows have no text in 'title', first 'train-i00000-2'",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("table", "column", "rows", "value", "says"),
    [
        ("items", "item_id", [0], None, "items: 1 rows whose item_id is no text, first None"),
        ("queries", "query_id", [2], "", "queries: 1 rows whose query_id is no text, first ''"),
        ("pairs", "pair_id", [1], 17, "pairs: 1 rows whose pair_id is no text, first 17"),
        ("pairs", "mismatch", [0], "colour", "with an unknown mismatch, first 'train-p00000-0' has 'colour'"),
        ("pairs", "mismatch", [0], None, "with an unknown mismatch, first 'train-p00000-0' has None"),
    ],
)
def test_ids_are_text_and_a_mismatch_is_a_dimension(
    world_tables: Tables, table: str, column: str, rows: list[int], value: object, says: str
) -> None:
    broken = copied(world_tables)
    broken[table][column] = broken[table][column].astype(object)
    broken[table].loc[rows, column] = value
    assert says in problems_of(broken)


def test_a_mismatch_stands_beside_l2_alone(world_tables: Tables) -> None:
    broken = copied(world_tables)
    broken["pairs"].loc[broken["pairs"].label == "L4", "mismatch"] = "color"
    assert "with a mismatch and another label than L2" in problems_of(broken)


def test_empty_tables_are_refused_but_an_empty_click_log_is_not(world_tables: Tables) -> None:
    assert check_tables(world_tables | {"clicks": world_tables["clicks"].head(0)}, "here")
    said = problems_of({name: table.head(0) for name, table in world_tables.items()})
    assert [f"{name}: the table is empty" in said for name in COLUMNS] == [True, True, True, False]


def test_own_parquet_files_win_over_the_world(
    world_tables: Tables, vertical: Vertical, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "verticals" / vertical.name
    folder.mkdir(parents=True)
    shutil.copy(project_root() / "data" / "verticals" / vertical.name / "vertical.yaml", folder)
    monkeypatch.setenv("LORE_ROOT", str(tmp_path))
    sizes = WorldConfig(
        train_queries=3, dev_queries=1, test_queries=1, pairs_per_query=2, clicked_per_query=0
    )
    assert len(load_tables(vertical, sizes, 17)["pairs"]) == 10
    for name in COLUMNS:
        write_parquet(world_tables[name], folder / f"{name}.parquet")
    read = load_tables(vertical, sizes, 17)
    for name in COLUMNS:
        pd.testing.assert_frame_equal(read[name], world_tables[name])
    write_parquet(world_tables["pairs"].assign(label="yes"), folder / "pairs.parquet")
    with pytest.raises(DataError, match=r"320 rows with an unknown label.*'yes'"):
        load_tables(vertical, sizes, 17)


def test_sharing_between_splits_is_counted_by_meaning_and_by_item() -> None:
    same, other = (
        dump_demands([Demand("color", "mint", said), Demand("category", category, category)])
        for said, category in (("matcha", "dress"), ("mint", "coat"))
    )
    reordered = dump_demands([Demand("category", "dress", "frock"), Demand("color", "mint", "mint")])
    queries = pd.DataFrame(
        {"query": ["a", "b", "c"], "demands": [same, reordered, other], "split": ["train", "test", "test"]}
    )
    pairs = pd.DataFrame({"item_id": ["i", "i", "k"], "split": ["train", "test", "dev"]})
    counted = split_sharing(queries, pairs)
    assert counted.to_dict("index") == {
        "meanings": {"in one split": 1, "in several splits": 1},
        "items": {"in one split": 1, "in several splits": 1},
    }
    texts = queries.drop(columns="demands").assign(query=["Red", "red", "blue"])
    assert split_sharing(texts, pairs).at["meanings", "in several splits"] == 1
