"""The Icecat adapter on hand-made lines of the files' own schema."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lore_lib.errors import DataError
from lore_lib.vertical.adapters.icecat import PAIRS, PRODUCTS, read
from lore_lib.vertical.adapters.rows import ReadReport
from lore_lib.vertical.tables import COLUMNS


def product(number: str, title: str = "Targus Privacy Screen 15", **attributes: object) -> dict[str, Any]:
    return {
        "id": number,
        "name": "ASF150EU",
        "title": title,
        "ean": ["0092636213183"],
        "short_description": None,
        "img_high": "http://images.example/1.jpg",
        "date_released": "2009-12-10T00:00:00Z",
        "supplier": "Targus",
        "price": 5795,
    } | {f"attr_{key}": value for key, value in attributes.items()}


def pair(query: str, docid: str, rating: object) -> dict[str, Any]:
    return {
        "query": query,
        "docid": docid,
        "rating": rating,
        "agents": [rating] * 3,
        "title": "as in the product",
        "brand": "Targus",
        "description": None,
        "price": 5795,
        "image_url": "http://images.example/1.jpg",
        "attributes": {"t_device_type": "Desktop/Laptop"},
    }


PRODUCT_ROWS = [
    product(
        "1", t_device_type="Desktop/Laptop", n_weight=43.0, n_length=1.25, b_wireless=False, b_matte=True
    ),
    product(
        "2",
        "Kensington " + "very " * 30 + "long lock",
        t_compatibility="- D620 / D420\\n- Vostro 1510 / 1310",
    ),
    product("3"),
    product("unrated"),
]
PAIR_ROWS = [pair("laptop", str(n), n - 1) for n in (1, 2, 3)] + [pair("usb hub", "1", 3)]


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    with gzip.open(folder / name, "wt", encoding="utf-8") as file:
        file.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, PRODUCTS, PRODUCT_ROWS)
    return write(tmp_path, PAIRS, PAIR_ROWS)


def test_the_four_tables_keep_the_contract(folder: Path) -> None:
    tables = read(folder)
    assert {name: len(table) for name, table in tables.items()} == {
        "items": 3,
        "queries": 2,
        "pairs": 4,
        "clicks": 0,
    }
    for name, columns in COLUMNS.items():
        assert set(columns) <= set(tables[name].columns)
    pairs = tables["pairs"]
    assert pairs.label.tolist() == ["L1", "L2", "L3", "L4"]
    assert set(pairs.kind) == {"plain"}
    assert set(tables["queries"].intent) == {"plain"}
    assert "unrated" not in set(tables["items"].item_id), "only products that a pair names are kept"
    split = tables["queries"].set_index("query_id").split
    assert (pairs.split == pairs.query_id.map(split)).all()


def test_typed_attributes_become_bounded_text(folder: Path) -> None:
    items = read(folder, max_attributes=4).get("items")
    assert items is not None
    assert json.loads(items.cpv[0]) == {
        "brand": "Targus",
        "device type": "Desktop/Laptop",
        "weight": "43",
        "length": "1.25",
        "wireless": "no",
    }
    assert json.loads(items.cpv[1]) == {"brand": "Targus", "compatibility": "- D620 / D420"}
    assert json.loads(items.cpv[2]) == {"brand": "Targus"}
    assert len(items.title[1].split()) == 16
    assert items.price[0] == 5795
    assert items.picture[0] == b""
    assert [len(json.loads(text)) for text in read(folder, max_attributes=0)["items"].cpv] == [1, 1, 1]


def test_products_that_nobody_rated_are_counted(folder: Path) -> None:
    report = ReadReport()
    read(folder, report=report)
    assert report.counts == {"product that no pair names": 1}
    assert report.first == {"product that no pair names": ["unrated"]}


def test_the_order_of_the_lines_does_not_move_a_query(folder: Path) -> None:
    before = read(folder)["queries"].set_index("query").split
    write(folder, PAIRS, PAIR_ROWS[::-1])
    after = read(folder)["queries"].set_index("query").split
    assert before.to_dict() == after.to_dict()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([PAIR_ROWS[0], "{oops\n"], r"pairs\.jsonl\.gz:2: not JSON"),
        ([PAIR_ROWS[0], "\n", "[1]\n"], r"pairs\.jsonl\.gz:3: a list, not a JSON object"),
        ([pair("laptop", "1", 4)], r"pairs\.jsonl\.gz:1: field 'rating' is 4; use one of 0, 1, 2, 3"),
        ([pair("laptop", "1", None)], "field 'rating' is None; use one of"),
        ([pair("laptop", "1", True)], "field 'rating' is True; use one of"),
        ([pair("laptop", "1", [3])], r"field 'rating' is \[3\]; use one of"),
        ([{"query": "laptop", "rating": 3}], "no column 'docid'; known: query, rating"),
        ([pair(" ", "1", 3)], "field 'query' is ' '"),
        ([pair("laptop", "99", 3)], "1 rows name a item_id that items does not have"),
        ([PAIR_ROWS[0], PAIR_ROWS[0]], "1 repeated pair_id"),
        ([], "the table is empty"),
    ],
)
def test_a_wrong_line_of_pairs_is_named_with_its_number(folder: Path, rows: list[Any], says: str) -> None:
    write(folder, PAIRS, rows)
    with pytest.raises(DataError, match=says):
        read(folder)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            product("1") | {"price": "cheap"},
            r"products\.jsonl\.gz:1: field 'price' is 'cheap'; give a number",
        ),
        (product("1") | {"price": -1}, "1 prices are no number of at least 0, first item '1'"),
        (product("1") | {"title": None}, r":1: field 'title' is ''; every row needs it"),
        ({"id": " ", "name": "x"}, r":1: field 'id' is ' '; every row needs it"),
        (product("2"), "1 repeated item_id, first '2'"),
    ],
)
def test_a_wrong_product_is_named(folder: Path, row: dict[str, Any], says: str) -> None:
    write(folder, PRODUCTS, [row, *PRODUCT_ROWS[1:]])
    with pytest.raises(DataError, match=says):
        read(folder)


@pytest.mark.parametrize("name", [PRODUCTS, PAIRS])
def test_a_missing_cut_or_foreign_file_is_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not gzip at all", gzip.compress(b"\xff\xfe\xfd")):
        (folder / name).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name}: damaged after row"):
            read(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file in .*; (did you mean|known)"):
        read(folder)


def test_all_that_is_wrong_is_listed_at_once(folder: Path) -> None:
    write(folder, PAIRS, [pair("laptop", "1", 9), "{oops\n", pair("", "2", 1), PAIR_ROWS[2]])
    write(folder, PRODUCTS, [product("1") | {"price": "cheap"}, *PRODUCT_ROWS[1:]])
    with pytest.raises(DataError, match="4 problems") as caught:
        read(folder)
    for place in ("pairs.jsonl.gz:1", "pairs.jsonl.gz:2", "pairs.jsonl.gz:3", "products.jsonl.gz:1"):
        assert f"{place}: " in str(caught.value)
