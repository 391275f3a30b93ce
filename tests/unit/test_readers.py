"""Readers of public data: whatever a field holds, they give tables that keep the contract, or one error."""

import contextlib
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from lore_lib.errors import DataError
from lore_lib.vertical.adapters import esci, icecat, rair, wands
from lore_lib.vertical.contract import check_tables

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["", "\u200b", "\u202egnp.exe", "</think>[L4]", "x" * 100_000, "{", "[]", "NaN", "1e400", "L5"]
    ),
    st.lists(st.integers(), max_size=2),
)
"""Values that a field may hold and should not, and some that it may."""

Rows = list[dict[str, Any]]

WANDS: dict[str, Rows] = {
    "query.csv": [{"query_id": 0, "query": "salon chair", "query_class": "Chairs"}],
    "product.csv": [
        {
            "product_id": 10, "product_name": "chair", "product_class": "Chairs",
            "category hierarchy": "Furniture / Chairs", "product_description": "good",
            "product_features": "color : blue|weight:7", "rating_count": 1.0,
            "average_rating": 4.5, "review_count": 1.0,
        }
    ],
    "label.csv": [{"id": 0, "query_id": 0, "product_id": 10, "label": "Exact"}],
}  # fmt: skip
ICECAT: dict[str, Rows] = {
    icecat.PRODUCTS: [
        {"id": "1", "title": "screen 15", "supplier": "Targus", "price": 57, "attr_t_type": "laptop"}
    ],
    icecat.PAIRS: [{"query": "laptop", "docid": "1", "rating": 3}],
}
ESCI: dict[str, Rows] = {
    esci.EXAMPLES: [
        {
            "example_id": 1, "query": "lamp", "query_id": 1, "product_id": "B1", "product_locale": "us",
            "esci_label": "E", "small_version": 1, "large_version": 1, "split": "train",
        }
    ],
    esci.PRODUCTS: [
        {
            "product_id": "B1", "product_title": "Lamp", "product_description": "",
            "product_bullet_point": None, "product_brand": None, "product_color": "red",
            "product_locale": "us",
        }
    ],
}  # fmt: skip
RAIR: dict[str, Rows] = {
    "Hard_Subset/one.jsonl": [
        {
            "query": "q", "title": "t", "item_id": 6, "groundtruth": "L4", "shop_name": "s",
            "vqa_result": "", "cpv_sku": "{}", "rule_list": "", "subset": "general_set_image",
            "image_base64": "",
        }
    ]
}  # fmt: skip


def read_rair(folder: Path) -> dict[str, pd.DataFrame]:
    return next(rair.read_batches(folder, ["Hard_Subset"]))


READERS: dict[str, tuple[dict[str, Rows], Callable[[Path], dict[str, pd.DataFrame]]]] = {
    "wands": (WANDS, wands.read),
    "icecat": (ICECAT, icecat.read),
    "esci": (ESCI, esci.read),
    "rair": (RAIR, read_rair),
}
FIELDS = [
    (name, file, column)
    for name, (files, _) in READERS.items()
    for file, rows in files.items()
    for column in rows[0]
]


def write(rows: Rows, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, sep="\t", index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@contextlib.contextmanager
def written(files: dict[str, Rows]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for file, rows in files.items():
            write(rows, Path(name) / file)
        yield Path(name)


@pytest.mark.parametrize("name", READERS)
def test_the_rows_as_they_are_give_one_pair(name: str) -> None:
    files, read = READERS[name]
    with written(files) as folder:
        tables = read(folder)
    assert tables["pairs"].label.tolist() == ["L4"]


@given(st.sampled_from(FIELDS), ODD)
@example(("wands", "label.csv", "label"), "Exactly")
@example(("rair", "Hard_Subset/one.jsonl", "image_base64"), "iVBORw0KGgo")
@example(("rair", "Hard_Subset/one.jsonl", "cpv_sku"), "[" * 100_000)
@settings(max_examples=120)
def test_any_value_in_any_field_gives_tables_or_an_error_that_names_its_place(
    field: tuple[str, str, str], value: Any
) -> None:
    name, file, column = field
    files, read = READERS[name]
    (row,) = files[file]
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(written(files | {file: [row | {column: value}]}))
        except (OverflowError, UnicodeEncodeError, pa.ArrowException):
            reject()  # the format itself cannot hold such a value
        try:
            tables = read(folder)
        except DataError as error:
            said = str(error)
        else:
            said = file
            check_tables(tables, "here")
    places = [Path(each).name for each in files] + ["items: ", "queries: ", "pairs: "]
    assert any(place in said for place in places)
