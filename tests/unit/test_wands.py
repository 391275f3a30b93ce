"""The WANDS adapter on hand-made rows of the published columns."""

import json
from pathlib import Path

import pytest

from lore_lib.errors import DataError
from lore_lib.vertical.adapters.rows import ReadReport
from lore_lib.vertical.adapters.wands import FILES, read

QUERIES = ["query_id\tquery\tquery_class", "0\tsalon chair\tMassage Chairs", '1\t"fawkes 36"" vanity"\t']
PRODUCTS = [
    "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features"
    "\trating_count\taverage_rating\treview_count",
    "10\tpapasan chair\tAccent Chairs\tFurniture / Living Room\tgood , deep\t"
    "material : rattan|weight:7|material : wood| : gray|empty : \t15.0\t4.5\t15.0",
    "11\tglass vanity\t\t\t\tcolor : blue\t\t\t",
    "12\tunjudged\tBeds\tFurniture\t\t\t\t\t",
]
LABELS = [
    "id\tquery_id\tproduct_id\tlabel",
    "0\t0\t10\tExact",
    "1\t0\t11\tIrrelevant",
    "2\t1\t11\tPartial",
]


def write(folder: Path, queries: list[str], products: list[str], labels: list[str]) -> Path:
    for name, lines in (("query.csv", queries), ("product.csv", products), ("label.csv", labels)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_three_grades_become_three_of_the_four_labels(tmp_path: Path) -> None:
    report = ReadReport()
    tables = read(write(tmp_path, QUERIES, PRODUCTS, LABELS), report=report)
    pairs = tables["pairs"].set_index("pair_id")
    assert pairs.label.to_dict() == {"0-10": "L4", "0-11": "L1", "1-11": "L3"}
    assert tables["queries"]["query"].tolist() == ["salon chair", 'fawkes 36" vanity']
    assert len(tables["clicks"]) == 0
    assert report.counts == {"product that no pair names": 1}
    assert report.first["product that no pair names"] == ["12"]


def test_features_become_attributes_and_gaps_become_empty_text(tmp_path: Path) -> None:
    items = read(write(tmp_path, QUERIES, PRODUCTS, LABELS))["items"].set_index("item_id")
    assert json.loads(items.cpv["10"]) == {"class": "Accent Chairs", "material": "rattan", "weight": "7"}
    assert json.loads(items.cpv["11"]) == {"color": "blue"}
    assert items.industry.to_dict() == {"10": "Furniture", "11": ""}
    assert items.selling_points["10"] == "good , deep"
    assert set(items.price) == {0.0}
    fewer = read(tmp_path, max_attributes=1, title_words=1)["items"].set_index("item_id")
    assert json.loads(fewer.cpv["10"]) == {"class": "Accent Chairs", "material": "rattan"}
    assert fewer.title["10"] == "papasan"


def test_a_pair_judged_more_than_once_takes_the_majority_or_is_left_out(tmp_path: Path) -> None:
    again = ["3\t0\t10\tExact", "4\t0\t10\tPartial", "5\t1\t11\tExact"]
    report = ReadReport()
    pairs = read(write(tmp_path, QUERIES, PRODUCTS, LABELS + again), report=report)["pairs"]
    assert dict(zip(pairs.pair_id, pairs.label, strict=True)) == {"0-10": "L4", "0-11": "L1"}
    assert report.counts["pair judged more than once, merged by majority"] == 2
    assert report.first["pair without a majority, left out"] == ["label.csv:4"]


def test_all_that_is_wrong_in_three_files_is_listed_at_once(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        [*QUERIES, "0\tagain\t", "2\t \t"],
        [*PRODUCTS, PRODUCTS[1], "13\ttoo few fields"],
        [*LABELS, "6\t7\t10\tExact", "7\t0\t99\tExact", "8\t0\t10\texact"],
    )
    with pytest.raises(DataError, match="7 problems") as caught:
        read(folder)
    for says in (
        "query.csv:4: field 'query_id' is '0', which another row has",
        "query.csv:5: field 'query' is ' '; every row needs it",
        "product.csv:5: field 'product_id' is '10', which another row has",
        "product.csv:6: 2 fields under 9 columns",
        "label.csv:5: field 'query_id' is '7', which query.csv does not have",
        "label.csv:6: field 'product_id' is '99', which product.csv does not have",
        "label.csv:7: field 'label' is 'exact'; did you mean 'Exact'?",
    ):
        assert says in str(caught.value)


def test_a_missing_file_or_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, ["query_id\tqueri\tquery_class", "0\tx\t"], PRODUCTS, LABELS)
    (tmp_path / "label.csv").rename(tmp_path / "labels.csv")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert "query.csv: no column 'query'; did you mean 'queri'?" in str(caught.value)
    assert f"label.csv: no such file in {tmp_path}; did you mean 'labels.csv'?" in str(caught.value)


def test_every_file_that_is_read_can_be_fetched_with_a_checksum() -> None:
    assert {file.name for file in FILES} == {"query.csv", "product.csv", "label.csv"}
    assert all(len(file.sha256) == 64 and "/3b74dcf4" in file.url for file in FILES)
