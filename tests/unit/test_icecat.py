"""The Icecat adapter on hand-made lines of the files' own schema."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lore_lib.errors import DataError
from lore_lib.vertical.icecat import PAIRS, PRODUCTS, read_icecat, split_of
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
    tables = read_icecat(folder)
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
    items = read_icecat(folder, max_attributes=4).get("items")
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
    assert [len(json.loads(text)) for text in read_icecat(folder, max_attributes=0)["items"].cpv] == [1, 1, 1]


def test_a_query_is_put_into_a_split_by_its_words_alone() -> None:
    queries = [f"query {n}" for n in range(400)]
    splits = [split_of(query) for query in queries]
    assert splits == [split_of(query) for query in queries]
    assert 0.6 < splits.count("train") / 400 < 0.8
    assert 0.13 < splits.count("test") / 400 < 0.27
    for one, other in (("laptop", "Laptops"), ("head set", "headset"), ("usb  hub", "usb hub")):
        assert split_of(one) == split_of(other)


def test_the_order_of_the_lines_does_not_move_a_query(folder: Path) -> None:
    before = read_icecat(folder)["queries"].set_index("query").split
    write(folder, PAIRS, PAIR_ROWS[::-1])
    after = read_icecat(folder)["queries"].set_index("query").split
    assert before.to_dict() == after.to_dict()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([PAIR_ROWS[0], "{oops\n"], r"pairs\.jsonl\.gz:2: not JSON"),
        ([PAIR_ROWS[0], "\n", "[1]\n"], r"pairs\.jsonl\.gz:3: a list, not a JSON object"),
        ([pair("laptop", "1", 4)], r"pairs\.jsonl\.gz:1: rating 4 is none of 0, 1, 2, 3"),
        ([pair("laptop", "1", None)], "rating None is none of"),
        ([pair("laptop", "1", True)], "rating True is none of"),
        ([pair("laptop", "1", [3])], r"rating \[3\] is none of"),
        ([{"query": "laptop", "rating": 3}], r":1: field 'docid' is None.*found query, rating"),
        ([pair(" ", "1", 3)], "field 'query' is ' '"),
        ([pair("laptop", "99", 3)], "1 rows name a item_id that items does not have"),
        ([PAIR_ROWS[0], PAIR_ROWS[0]], "1 repeated pair_id"),
        ([], "no line at all"),
    ],
)
def test_a_wrong_line_of_pairs_is_named_with_its_number(folder: Path, rows: list[Any], says: str) -> None:
    write(folder, PAIRS, rows)
    with pytest.raises(DataError, match=says):
        read_icecat(folder)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (product("1") | {"price": "cheap"}, r"products\.jsonl\.gz:1: price 'cheap' is no number"),
        (product("1") | {"price": -1}, "1 prices are no number of at least 0, first item '1'"),
        (product("1") | {"title": None}, r":1: field 'title' is None"),
        ({"name": "x"}, r":1: field 'id' is None"),
        (product("2"), "1 repeated item_id, first '2'"),
    ],
)
def test_a_wrong_product_is_named(folder: Path, row: dict[str, Any], says: str) -> None:
    write(folder, PRODUCTS, [row, *PRODUCT_ROWS[1:]])
    with pytest.raises(DataError, match=says):
        read_icecat(folder)


@pytest.mark.parametrize("name", [PRODUCTS, PAIRS])
def test_a_missing_cut_or_foreign_file_is_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not gzip at all", gzip.compress(b"\xff\xfe\xfd")):
        (folder / name).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name}: damaged after line"):
            read_icecat(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"no file .*{name}; the folder must hold products"):
        read_icecat(folder)
