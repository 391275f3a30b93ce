"""The ESCI adapter on hand-made rows of the published columns."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lore_lib.errors import DataError
from lore_lib.vertical.adapters.esci import EXAMPLES, FILES, PRODUCTS, read
from lore_lib.vertical.adapters.frames import split_of
from lore_lib.vertical.adapters.rows import ReadReport


def example(number: int, query: str | None, product_id: str, label: str, **other: Any) -> dict[str, Any]:
    return {
        "example_id": number,
        "query": query,
        "query_id": number // 10,
        "product_id": product_id,
        "product_locale": "us",
        "esci_label": label,
        "small_version": 1,
        "large_version": 1,
        "split": "train",
    } | other


def product(product_id: str, title: str | None, **other: Any) -> dict[str, Any]:
    return {
        "product_id": product_id,
        "product_title": title,
        "product_description": "<p>long</p>",
        "product_bullet_point": None,
        "product_brand": None,
        "product_color": None,
        "product_locale": "us",
    } | other


EXAMPLE_ROWS = [
    example(10, "desk lamp", "B1", "E"),
    example(11, "desk lamp", "B2", "S"),
    example(12, "desk lamp", "B3", "C"),
    example(13, "desk lamp", "B4", "I"),
    example(20, "red mug", "B1", "I", split="test"),
    example(30, "lampara", "B1", "E", product_locale="es"),
    example(40, "easy query", "B1", "E", small_version=0),
]
PRODUCT_ROWS = [
    product("B1", "Lamp", product_brand="Lumo", product_color="rød", product_bullet_point="warm\nlight"),
    product("B2", "Other lamp"),
    product("B3", None),
    product("B4", "Spoon"),
    product("B1", "Lámpara", product_locale="es"),
    product("B9", "never judged"),
]


def write(folder: Path, examples: list[dict[str, Any]], products: list[dict[str, Any]]) -> Path:
    pd.DataFrame(examples).to_parquet(folder / EXAMPLES, row_group_size=2)
    pd.DataFrame(products).to_parquet(folder / PRODUCTS, row_group_size=2)
    return folder


def test_four_grades_become_the_four_labels(tmp_path: Path) -> None:
    report = ReadReport()
    tables = read(write(tmp_path, EXAMPLE_ROWS, PRODUCT_ROWS), report=report)
    pairs = tables["pairs"]
    assert pairs.pair_id.tolist() == ["esci-10", "esci-11", "esci-12", "esci-13", "esci-20"]
    assert pairs.label.tolist() == ["L4", "L3", "L2", "L1", "L1"]
    items = tables["items"].set_index("item_id")
    assert sorted(items.index) == ["us:B1", "us:B2", "us:B3", "us:B4"]
    assert items.title["us:B3"] == ""
    assert report.first["product without a title, kept"] == ["us:B3"]
    assert json.loads(items.cpv["us:B1"]) == {"brand": "Lumo", "color": "rød"}
    assert items.selling_points["us:B1"] == "warm light"


def test_a_product_is_named_by_its_locale_too(tmp_path: Path) -> None:
    folder = write(tmp_path, EXAMPLE_ROWS, PRODUCT_ROWS)
    items = read(folder, locales=("us", "es"), small=False)["items"].set_index("item_id")
    assert (items.title["us:B1"], items.title["es:B1"]) == ("Lamp", "Lámpara")
    assert read(folder, locales=("es",))["queries"]["query"].tolist() == ["lampara"]
    assert "easy query" in set(read(folder, small=False)["queries"]["query"])


def test_the_official_split_stays_and_dev_is_cut_from_train_by_query(tmp_path: Path) -> None:
    rows = [example(10 * n, f"query {n}", "B1", "E") for n in range(60)]
    rows += [example(10 * n, f"query {n}", "B1", "E", split="test") for n in range(60, 80)]
    queries = read(write(tmp_path, rows, PRODUCT_ROWS))["queries"].set_index("query").split
    assert set(queries.iloc[60:]) == {"test"}
    assert set(queries.iloc[:60]) == {"train", "dev"}
    assert all((split == "dev") == (split_of(query) == "dev") for query, split in queries.iloc[:60].items())


def test_a_train_query_that_test_holds_is_left_out_and_counted(tmp_path: Path) -> None:
    leak = [example(50, "Red  Mugs", "B2", "E"), example(51, "Red  Mugs", "B1", "E")]
    report = ReadReport()
    tables = read(write(tmp_path, EXAMPLE_ROWS + leak, PRODUCT_ROWS), report=report)
    assert "Red  Mugs" not in set(tables["queries"]["query"])
    assert report.counts["judgement of a train query that test holds too, left out"] == 2
    assert report.first["judgement of a train query that test holds too, left out"] == ["esci-q5"]


def test_a_draw_of_queries_keeps_them_whole_and_does_not_depend_on_order(tmp_path: Path) -> None:
    rows = [example(10 * n + k, f"query {n}", f"B{k + 1}", "E") for n in range(30) for k in range(2)]
    drawn = read(write(tmp_path, rows, PRODUCT_ROWS), max_queries=5)
    assert len(drawn["queries"]) == 5
    assert (drawn["pairs"].groupby("query_id").size() == 2).all()
    again = read(write(tmp_path, rows[::-1], PRODUCT_ROWS), max_queries=5)
    assert set(drawn["queries"]["query"]) == set(again["queries"]["query"])


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [*EXAMPLE_ROWS, example(14, "desk lamp", "B1", "E"), example(15, "desk lamp", "GONE", "E")]
    report = ReadReport()
    tables = read(write(tmp_path, rows, [*PRODUCT_ROWS, PRODUCT_ROWS[1]]), report=report)
    assert len(tables["pairs"]) == 5
    assert report.first["repeated judgement, left out"] == ["esci-14"]
    assert report.first["judgement of a product that is not in the products file, left out"] == ["us:GONE"]
    assert report.first["repeated product, left out"] == ["us:B2"]


def test_all_wrong_examples_are_listed_by_their_id(tmp_path: Path) -> None:
    wrong = [
        example(60, None, "B1", "E"),
        example(61, "\u200b", "B1", "E"),
        example(62, "mug", "B1", "Exact"),
        example(63, "mug", "B1", "S", split="dev"),
    ]
    with pytest.raises(DataError, match="4 problems") as caught:
        read(write(tmp_path, EXAMPLE_ROWS + wrong, PRODUCT_ROWS))
    for says in ("example_id:60: field 'query'", "example_id:61: field 'query'", "62: field 'esci_label'"):
        assert says in str(caught.value)
    assert "example_id:63: field 'split' is 'dev'" in str(caught.value)


@pytest.mark.parametrize("name", [EXAMPLES, PRODUCTS])
def test_a_missing_cut_or_foreign_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, EXAMPLE_ROWS, PRODUCT_ROWS)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{name}: damaged after row 0"):
        read(tmp_path)
    pd.DataFrame({"query_idd": [1]}).to_parquet(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: no column"):
        read(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        read(tmp_path)


def test_an_unknown_or_absent_locale_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, EXAMPLE_ROWS, PRODUCT_ROWS)
    with pytest.raises(DataError, match="locale 'uk' is not in the data; known: us, es, jp"):
        read(tmp_path, locales=("uk",))
    with pytest.raises(DataError, match="no row of the locales jp is small"):
        read(tmp_path, locales=("jp",))


def test_both_files_can_be_fetched_with_a_checksum() -> None:
    assert {file.name for file in FILES} == {EXAMPLES, PRODUCTS}
    assert all(len(file.sha256) == 64 for file in FILES)
