"""Your own files: whatever stands in them, the tables keep their contract or one error lists all problems."""

import base64
import copy
import csv
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lore_lib.errors import DataError
from lore_lib.vertical.adapters import plain
from lore_lib.vertical.adapters.frames import normal_form, query_key, split_of
from lore_lib.vertical.adapters.rows import ReadReport, visible
from lore_lib.vertical.contract import Tables, check_tables
from lore_lib.vertical.mapping import OwnTables

OWN: dict[str, dict[str, Any]] = {
    "items": {
        "file": "products.csv",
        "columns": {
            "item_id": "sku",
            "title": "name",
            "price": "usd",
            "cpv": {"brand": "brand", "color": "color"},
        },
    },
    "queries": {"file": "queries.csv", "columns": {"query_id": "id", "query": "text"}},
    "pairs": {
        "file": "ratings.csv",
        "columns": {"query_id": "id", "item_id": "sku", "label": "grade"},
        "labels": {"good": "L4", "bad": "L1", 3: "L3", "?": "skip"},
    },
}
PRODUCTS = "sku,name,usd,brand,color\n1,red lamp,12.99,Lumo,red\n2,mug,3,,blue\n"
QUERIES = "id,text\nq1,lamp\nq2,cup\n"
RATINGS = "id,sku,grade\nq1,1,good\nq1,2,bad\nq2,2,3\n"


def write(
    folder: Path,
    products: str = PRODUCTS,
    queries: str = QUERIES,
    ratings: str = RATINGS,
    encoding: str = "utf-8",
) -> Path:
    for name, text in (("products", products), ("queries", queries), ("ratings", ratings)):
        (folder / f"{name}.csv").write_text(text, encoding=encoding, newline="")
    return folder


def mapped(**tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """``OWN`` with other columns, file or labels; None takes a column away."""
    own = copy.deepcopy(OWN)
    for name, changes in tables.items():
        table = own.setdefault(name, {"columns": {}})
        for key, value in changes.items():
            (table if key in ("file", "labels") else table["columns"])[key] = value
    return own


def read(folder: Path, own: Any = OWN, report: ReadReport | None = None) -> Tables:
    return plain.read(folder, OwnTables.model_validate(own), report=report)


def problems_of(folder: Path, own: Any = OWN) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, own)
    assert str(caught.value).startswith(f"{folder}: ")
    return str(caught.value)


def test_three_csv_files_become_the_tables(tmp_path: Path) -> None:
    tables = read(write(tmp_path))
    assert tables["items"].set_index("item_id").price.to_dict() == {"1": 12.99, "2": 3.0}
    assert [json.loads(text) for text in tables["items"].cpv] == [
        {"brand": "Lumo", "color": "red"},
        {"color": "blue"},
    ]
    assert tables["pairs"].label.tolist() == ["L4", "L1", "L3"]
    assert tables["queries"].split.tolist() == [split_of("lamp"), split_of("cup")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encoding_and_delimiter_are_found(tmp_path: Path, encoding: str, delimiter: str) -> None:
    products = PRODUCTS.replace(",", delimiter).replace("red lamp", "rød, lámpa")
    if delimiter == ",":
        products = products.replace("rød, lámpa", '"rød, lámpa"')
    ratings = RATINGS.replace(",", delimiter)
    write(tmp_path, products, QUERIES.replace(",", delimiter), ratings, encoding)
    assert read(tmp_path)["items"].title.tolist() == ["rød, lámpa", "mug"]


def test_json_lines_and_parquet_keep_their_types(tmp_path: Path) -> None:
    items = [
        {"sku": 1, "name": "lamp", "usd": 12.99, "cpv": {"color": "red"}, "skus": ["S"]},
        {"sku": 2, "name": "mug", "usd": 3, "cpv": None, "skus": None},
    ]
    lines = "".join(json.dumps(row) + "\n\n" for row in items)
    (tmp_path / "products.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pd.DataFrame({"text": ["lamp", "cup"], "sku": [1, 2], "grade": [3.0, 3.0]}).to_parquet(
        tmp_path / "r.parquet"
    )
    columns = {
        "items": {
            "file": "products.jsonl.gz",
            "columns": {"item_id": "sku", "title": "name", "price": "usd", "cpv": "cpv", "skus": "skus"},
        },
        "pairs": {
            "file": "r.parquet",
            "columns": {"query": "text", "item_id": "sku", "label": "grade"},
            "labels": {"3": "L3"},
        },
    }
    tables = read(tmp_path, columns)
    assert tables["items"].cpv.tolist() == ['{"color": "red"}', "{}"]
    assert tables["items"].skus.tolist() == ['["S"]', "[]"]
    assert tables["queries"].query_id.tolist() == [query_key("lamp"), query_key("cup")]
    assert tables["pairs"].label.tolist() == ["L3", "L3"]


@pytest.mark.parametrize(
    ("price", "fix"),
    [
        ("12,99", "did you mean 12.99?"),
        ("$12.99", "did you mean 12.99?"),
        ("12.99 EUR", "did you mean 12.99?"),
        ("1,299.00", "did you mean 1299.00?"),
        ("1.299,00", "did you mean 1299.00?"),
        ("1,299", "did you mean 1299?"),
        ("nan", "write 0 where the price is not known"),
        ("", "write 0 where the price is not known"),
        ("inf", "give a number of at least 0"),
        ("-3", "give a number of at least 0"),
        ("1e3", "give a number of at least 0"),
        ("12-15", "give a number of at least 0"),
        ("1.2.3", "give a number of at least 0"),
        ("١٢", "give a number of at least 0"),
    ],
)
def test_a_price_that_is_no_plain_number_is_refused_with_the_nearest_fix(
    tmp_path: Path, price: str, fix: str
) -> None:
    write(tmp_path, PRODUCTS.replace("12.99", f'"{price}"'))
    assert f"products.csv:2: field 'usd' is {price!r}; {fix}" in problems_of(tmp_path)


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1, True, [1], None])
def test_a_price_of_a_wrong_type_is_refused(tmp_path: Path, price: object) -> None:
    write(tmp_path)
    (tmp_path / "p.jsonl").write_text(json.dumps({"sku": "1", "name": "lamp", "usd": price}) + "\n")
    columns = mapped(items={"file": "p.jsonl", "cpv": None})
    assert "p.jsonl:1: field 'usd' is " in problems_of(tmp_path, columns)


def test_every_problem_of_every_file_is_listed_in_one_pass(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        PRODUCTS + "1,again,1,,\n3, ,1,,\n4,too,many,fields,here,now\n5,x,free,,\n",
        QUERIES + "q1,again\nq4,\u200b\n",
        RATINGS + "q9,1,good\nq1,9,good\nq2,1,god\nq1,1,bad\n",
    )
    text = problems_of(folder)
    assert "10 problems" in text
    for says in (
        "products.csv:4: field 'sku' is '1', which row 2 has already",
        "products.csv:5: field 'name' is ' '; every row needs it",
        "products.csv:6: 6 fields under 5 columns",
        "products.csv:7: field 'usd' is 'free'",
        "queries.csv:4: field 'id' is 'q1', which row 2 has already",
        "queries.csv:5: field 'text' is '\\u200b'; every row needs it",
        "ratings.csv:5: field 'id' is 'q9', which queries do not have",
        "ratings.csv:6: field 'sku' is '9', which items do not have",
        "ratings.csv:7: field 'grade' is 'god', no known grade; known: 'good', 'bad', '3', '?'; add it",
        "ratings.csv:8: field 'sku' makes the same pair as row 2",
    ):
        assert says in text


def test_a_mismatch_is_a_dimension_and_stands_beside_l2_alone(tmp_path: Path) -> None:
    own = mapped(pairs={"mismatch": "why"})
    own["pairs"]["labels"] = {"good": "L4", "bad": "L2", 3: "L3"}
    ratings = "id,sku,grade,why\nq1,1,good,\nq1,2,bad,color\nq2,2,{},{}\n"
    assert read(write(tmp_path, ratings=ratings.format("3", "")), own)["pairs"].mismatch.tolist() == [
        "",
        "color",
        "",
    ]
    for grade, why, says in (
        ("bad", "colour", "ratings.csv:4: field 'why' is 'colour'; did you mean 'color'?"),
        ("3", "color", "ratings.csv:4: field 'why' is 'color' beside L3; only an L2 names what failed"),
    ):
        assert says in problems_of(write(tmp_path, ratings=ratings.format(grade, why)), own)


def test_ids_that_join_to_the_same_text_are_different_pairs(tmp_path: Path) -> None:
    products = "sku,name,usd,brand,color\nb-c,lamp,1,,\nc,mug,1,,\n"
    folder = write(tmp_path, products, "id,text\na,lamp\na-b,cup\n", "id,sku,grade\na,b-c,good\na-b,c,bad\n")
    pairs = read(folder)["pairs"]
    assert pairs[["query_id", "item_id", "label"]].values.tolist() == [["a", "b-c", "L4"], ["a-b", "c", "L1"]]
    assert pairs.pair_id.is_unique


def test_a_flood_of_one_problem_does_not_hide_the_others(tmp_path: Path) -> None:
    rows = "".join(f"{number},x,free,,\n" for number in range(3, 1003))
    text = problems_of(write(tmp_path, PRODUCTS + rows, ratings=RATINGS + "q1,1,what\n"))
    assert "1002 problems" in text
    assert "products.csv:23: field 'usd' is wrong in 980 more rows" in text
    assert "field 'grade' is 'what'" in text
    assert len(text) < 4000


def test_mixed_encodings_are_found_in_their_fields(tmp_path: Path) -> None:
    write(tmp_path)
    good, bad = "3,café,1,,\n".encode(), "4,café,1,,caf\xe9\n".encode("latin-1")
    (tmp_path / "products.csv").write_bytes(PRODUCTS.encode() + good + bad + good.replace(b"3", b"5"))
    text = problems_of(tmp_path)
    assert "2 problems" in text
    assert "products.csv:5: field 'name' holds what is no UTF-8 (caf\\udce9); save the file as UTF-8" in text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (PRODUCTS.encode("utf-16-le"), "is no text in UTF-8, or in UTF-16 with a byte order mark"),
        (PRODUCTS.encode("utf-32"), "is no text in UTF-8, or in UTF-16 with a byte order mark"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is no text in UTF-8"),
        (b"PK\x03\x04\0\0", "is a workbook or an archive, whatever its name; export each sheet as CSV"),
        (PRODUCTS.encode("utf-16") + b"\xd8", "damaged after row"),
        (b"", "the table is empty"),
        (b"sku,name,usd,brand,color\n", "the table is empty"),
        (b"sku,nmae,usd,brand,color\n1,x,1,,\n", "no column 'name'; did you mean 'nmae'?"),
        (b"sku,name,usd,brand,color,sku\n1,x,1,,,1\n", "two columns are named 'sku'"),
        (PRODUCTS.encode() + b'3,"open,1,,\n4,x,1,,\n', "products.csv:4: not CSV from here on"),
    ],
)
def test_a_file_that_is_no_table_says_so(tmp_path: Path, data: bytes, says: str) -> None:
    write(tmp_path)
    (tmp_path / "products.csv").write_bytes(data)
    assert says in problems_of(tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{oops", "p.jsonl:2: not JSON"),
        ("[1]", "p.jsonl:2: a list, not a JSON object"),
        ("[" * 10**5, "p.jsonl:2: not JSON"),
        ('{"sku": 2.5, "name": "x"}', "p.jsonl:2: field 'sku' is 2.5, a float; give text"),
        ('{"sku": "2", "name": "half \\ud83d"}', "p.jsonl:2: field 'name' holds what is no UTF-8"),
        ('{"sku": "2", "name": "x", "cpv": "red"}', "p.jsonl:2: field 'cpv' is 'red'; give JSON such as"),
        ('{"sku": "2", "name": "x", "cpv": {"a": "\\ud83d"}}', "field 'cpv' holds what is no UTF-8"),
    ],
)
def test_a_wrong_json_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    write(tmp_path)
    (tmp_path / "p.jsonl").write_text(f'{{"sku": 1, "name": "lamp", "cpv": {{}}}}\n{line}\n')
    columns = mapped(items={"file": "p.jsonl", "cpv": "cpv", "price": None})
    assert says in problems_of(tmp_path, columns)


def test_long_titles_are_cut_and_counted(tmp_path: Path) -> None:
    write(tmp_path, PRODUCTS.replace("red lamp", "x" * 2**20))
    report = ReadReport()
    assert read(tmp_path, report=report)["items"].title.map(len).tolist() == [2000, 3]
    assert report.counts == {"name cut to 2000 characters": 1}
    assert str(report) == "1 x name cut to 2000 characters (products.csv:2)"
    assert report.table().to_dict("records") == [
        {"reason": "name cut to 2000 characters", "rows": 1, "first": "products.csv:2"}
    ]


def test_zero_width_and_right_to_left_characters_stay_and_count_for_nothing(tmp_path: Path) -> None:
    title = "\u200bred\u200d \u202elamp\u202c שלום"
    report = ReadReport()
    tables = read(write(tmp_path, PRODUCTS.replace("red lamp", title)), report=report)
    assert tables["items"].title[0] == title
    assert report.counts == {}
    assert split_of("la\u200bmp") == split_of("lamp")


def test_pictures_come_as_path_or_base64_and_broken_ones_are_counted(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    (tmp_path / "lamp.png").write_bytes(out.getvalue())
    text = base64.b64encode(out.getvalue()).decode()
    rows = f"1,a,1,,,lamp.png\n2,b,1,,,{text}\n3,c,1,,,\n4,d,1,,,gone.png\n5,e,1,,,{text[:40]}\n"
    write(tmp_path, f"sku,name,usd,brand,color,photo\n{rows}")
    report = ReadReport()
    items = read(tmp_path, mapped(items={"picture": "photo"}), report=report)["items"]
    assert [len(data) > 0 for data in items.picture] == [True, True, False, False, False]
    assert report.counts == {
        "no picture": 1,
        "picture file is not there": 1,
        "picture cannot be read as PNG or JPEG": 1,
    }


def test_given_splits_are_kept_and_no_query_stands_in_two(tmp_path: Path) -> None:
    columns = mapped(queries={"split": "part"})
    write(tmp_path, queries="id,text,part\nq1,lamp,test\nq2,cup,train\n")
    assert read(tmp_path, columns)["pairs"].split.tolist() == ["test", "test", "train"]
    write(tmp_path, queries="id,text,part\nq1,lamp,test\nq2,LAMPS,train\nq3,mug,valid\n")
    text = problems_of(tmp_path, columns)
    assert "queries.csv:3: field 'part' puts 'LAMPS' into train, but queries.csv:2 has it in test" in text
    assert "queries.csv:4: field 'part' is 'valid'; known: train, dev, test" in text


def test_queries_may_stand_in_the_pairs(tmp_path: Path) -> None:
    write(tmp_path, ratings="text,sku,grade\nlamp,1,good\nlamp,2,bad\ncup,2,good\n")
    del (columns := mapped(pairs={"query": "text", "query_id": None}))["queries"]
    tables = read(tmp_path, columns)
    assert tables["queries"]["query"].tolist() == ["lamp", "cup"]
    assert tables["queries"].query_id.tolist() == [query_key("lamp"), query_key("cup")]


def test_clicks_name_queries_and_items_that_are_there(tmp_path: Path) -> None:
    columns = mapped(clicks={"file": "clicks.csv", "query_id": "q", "item_id": "sku", "clicks": "n"})
    write(tmp_path)
    (tmp_path / "clicks.csv").write_text("q,sku,n\nq1,1,7\n")
    tables = read(tmp_path, columns)
    assert tables["clicks"].clicks.tolist() == [7]
    (tmp_path / "clicks.csv").write_text("q,sku,n\nq9,1,7\nq9,1,-1\n")
    text = problems_of(tmp_path, columns)
    assert "clicks.csv:2: field 'q' is 'q9', which queries do not have" in text
    assert "clicks.csv:3: field 'n' is '-1'; give a whole number of at least 0" in text


def test_one_id_with_two_texts_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ratings="id,text,sku,grade\nq1,lamp,1,good\nq1,cup,2,bad\n")
    del (columns := mapped(pairs={"query": "text"}))["queries"]
    assert "ratings.csv:3: field 'text' is 'cup'; query 'q1' had 'lamp' before" in problems_of(
        tmp_path, columns
    )


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (mapped(items={"file": "gone.csv"}), "gone.csv: no such file in"),
        (mapped(items={"file": "productz.csv"}), "did you mean 'products.csv'?"),
        (mapped(items={"file": "products.xls"}), "suffix '.xls' is unknown; export each sheet as CSV"),
        (mapped(items={"file": "products.doc"}), "suffix '.doc' is unknown; use one of .csv"),
        (mapped(items={"price": "used"}), "products.csv: no column 'used'; did you mean 'usd'?"),
    ],
)
def test_a_file_or_column_that_is_not_there_is_named_with_the_nearest(
    tmp_path: Path, columns: Any, says: str
) -> None:
    text = problems_of(write(tmp_path), columns)
    assert "1 problem:" in text
    assert says in text


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=30)  # each writes and reads files
@given(
    st.lists(st.tuples(TEXT, TEXT, st.floats(0, 1e9)), min_size=1, max_size=6),
    st.sampled_from(["csv", "tsv", "jsonl"]),
)
@example([("\u200b", "x", 1.0)], "csv")
@example([("a\r\nb", '"', 0.1)], "tsv")
@example([("\u2028", "\x1c", 2.0)], "jsonl")
def test_whatever_the_rows_say_the_tables_keep_the_contract_or_name_the_field(
    rows: list[tuple[str, str, float]], suffix: str
) -> None:
    """Texts come back to the letter; what is refused is refused by row and field."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        header = ("sku", "name", "usd", "text", "grade")
        full = [(f"{n}", title, f"{usd:.2f}", query, "L4") for n, (title, query, usd) in enumerate(rows)]
        path = folder / f"all.{suffix}"
        with path.open("w", encoding="utf-8", newline="") as file:
            if suffix == "jsonl":
                file.writelines(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in full)
            else:
                writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",", quoting=csv.QUOTE_ALL)
                writer.writerows([header, *full])
        columns = {
            "items": {"file": path.name, "columns": {"item_id": "sku", "title": "name", "price": "usd"}},
            "pairs": {"file": path.name, "columns": {"query": "text", "item_id": "sku", "label": "grade"}},
        }
        if not all(visible(row[1]) and visible(row[3]) for row in full):
            with pytest.raises(DataError, match="every row needs it"):
                read(folder, columns)
            return
        tables = read(folder, columns)
        check_tables(tables, "again")
        assert tables["items"].title.tolist() == [row[1] for row in full]
        assert tables["items"].price.tolist() == [float(row[2]) for row in full]
        assert tables["queries"]["query"].tolist() == list(dict.fromkeys(row[3] for row in full))
        forms = {}
        for query, split in zip(tables["queries"]["query"], tables["queries"].split, strict=True):
            assert forms.setdefault(normal_form(query), split) == split


NAMES = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), min_size=1, max_size=8)
VISIBLE = TEXT.filter(visible)
FIELDS = {
    "items": ("item_id", "title", "price", "shop", "industry", "selling_points"),
    "queries": ("query_id", "query", "frequency"),
    "pairs": ("pair_id", "query_id", "item_id", "label", "mismatch"),
    "clicks": ("query_id", "item_id", "clicks"),
}
WIDTH = sum(map(len, FIELDS.values()))


def own_files(folder: Path, rows: dict[str, list[tuple[Any, ...]]], names: list[str], suffix: str) -> Any:
    """Write the rows under these column names, the last column first; returns the mapping."""
    fresh = iter(names)
    own: dict[str, Any] = {}
    for table, fields in FIELDS.items():
        columns = {field: next(fresh) for field in fields}
        frame = pd.DataFrame(rows[table], columns=list(columns.values()), dtype=str).iloc[:, ::-1]
        path = folder / f"{table}.{suffix}"
        if suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
        elif suffix == "parquet":
            frame.to_parquet(path)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",", quoting=csv.QUOTE_ALL)
                writer.writerows([list(frame), *frame.itertuples(index=False)])
        own[table] = {"file": path.name, "columns": columns}
    return own


@settings(max_examples=30)  # each writes and reads eight files
@given(
    st.lists(st.tuples(VISIBLE, st.floats(0, 1e9), TEXT, TEXT, TEXT), min_size=1, max_size=4),
    st.lists(st.tuples(VISIBLE, st.integers(0, 2**40)), min_size=1, max_size=3),
    st.lists(NAMES, min_size=WIDTH, max_size=WIDTH, unique=True),
    st.permutations(["0", "1", "2", "3.0"]),
    st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
)
def test_renamed_columns_and_grades_read_to_the_same_tables_as_the_canonical_ones(
    items: list[Any], queries: list[Any], names: list[str], grades: list[str], suffix: str
) -> None:
    pairs = [(f"q{q}", f"i{n}") for q in range(len(queries)) for n in range(len(items))]
    rows: dict[str, list[tuple[Any, ...]]] = {
        "items": [(f"i{n}", title, f"{price:.2f}", *more) for n, (title, price, *more) in enumerate(items)],
        "queries": [(f"q{n}", *query) for n, query in enumerate(queries)],
        "pairs": [(f"p{n}", *pair, f"L{n % 4 + 1}", "") for n, pair in enumerate(pairs)],
        "clicks": [(*pair, n) for n, pair in enumerate(pairs)],
    }
    canonical = [field for fields in FIELDS.values() for field in fields]
    with tempfile.TemporaryDirectory() as name:
        before = read(Path(name), own_files(Path(name), rows, canonical, "csv"))
        graded = [(*row[:3], grades[int(row[3][1]) - 1], row[4]) for row in rows["pairs"]]
        own = own_files(Path(name), rows | {"pairs": graded}, names, suffix)
        own["pairs"]["labels"] = {float(grade): f"L{n}" for n, grade in enumerate(grades, start=1)}
        after = read(Path(name), own)
    check_tables(after, "after")
    for table, frame in before.items():
        pd.testing.assert_frame_equal(after[table], frame)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (0, "no column 'größe'; known: sku, name, usd, gr\\udcf6\\udcdfe; save the file as UTF-8"),
        (1, "2: field 'name' holds what is no UTF-8 (Tischl\\udce4mpchen); save the file as UTF-8"),
    ],
)
def test_latin_1_in_one_line_is_named_with_that_line(tmp_path: Path, line: int, says: str) -> None:
    lines = ["sku,name,usd,größe", "1,Tischlämpchen,12.99,39 cm"]
    write(tmp_path, ratings="id,sku,grade\nq1,1,good\n")
    data = [text.encode("latin-1" if at == line else "utf-8") for at, text in enumerate(lines)]
    (tmp_path / "products.csv").write_bytes(b"\n".join(data))
    text = problems_of(tmp_path, mapped(items={"cpv": {"size": "größe"}}))
    assert "1 problem:" in text
    assert says in text
    text.encode()  # can be shown


def test_a_column_that_no_json_line_has_is_one_problem(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"id": 1, "name": "lamp"}\n{"id": 2, "name": "mug"}\n')
    text = problems_of(tmp_path, mapped(items={"file": "p.jsonl", "cpv": None, "price": None}))
    assert "1 problem:\n  p.jsonl: no column 'sku'; known: id, name" in text


def test_attributes_may_stand_in_columns_of_other_names(tmp_path: Path) -> None:
    write(tmp_path, PRODUCTS.replace("color", "Farbe"))
    tables = read(tmp_path, mapped(items={"cpv": {"color": "Farbe", "shade of": "Farbe"}}))
    assert json.loads(tables["items"].cpv[1]) == {"color": "blue", "shade of": "blue"}


@pytest.mark.parametrize("grade", ["?", " ? ", ""])
def test_pairs_of_a_grade_to_skip_are_left_out_and_counted(tmp_path: Path, grade: str) -> None:
    write(tmp_path, ratings=f"{RATINGS}q2,1,{grade}\nq2,9,{grade}\n")
    report = ReadReport()
    own = mapped(pairs={"labels": {"good": "L4", "bad": "L1", 3: "L3", "?": "skip", "": "skip"}})
    assert len(read(tmp_path, own, report)["pairs"]) == 3
    assert report.counts == {f"grade {grade!r} is skipped": 2}
    assert report.first == {f"grade {grade!r} is skipped": ["ratings.csv:5", "ratings.csv:6"]}
    own["pairs"]["labels"] = dict.fromkeys(own["pairs"]["labels"], "skip")
    assert "ratings.csv: every one of 5 rows is skipped" in problems_of(tmp_path, own)


def test_files_in_folders_are_named_with_their_path(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write(tmp_path)
    write(tmp_path / "old", PRODUCTS.replace("12.99", "12,99"))
    text = problems_of(tmp_path, mapped(items={"file": "old/products.csv"}))
    assert "\n  old/products.csv:2: 6 fields under 5 columns" in text


@given(
    st.binary(max_size=300),
    st.sampled_from(["csv", "tsv", "jsonl", "parquet", "arrow", "csv.gz", "jsonl.gz"]),
)
@example(b"sku\n1\n", "csv")
@example(b'{"sku": "1"}\n', "jsonl")
def test_any_bytes_at_all_give_tables_or_a_data_error(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"x.{suffix}"
        path.write_bytes(data)
        columns = {
            "items": {"file": path.name, "columns": {"item_id": "sku", "title": "sku"}},
            "pairs": {"file": path.name, "columns": {"query": "sku", "item_id": "sku", "label": "sku"}},
        }
        with pytest.raises(DataError, match=rf"{path.name}"):
            read(Path(name), columns)


@given(TEXT)
def test_spelling_does_not_move_a_query_to_another_split(query: str) -> None:
    for other in (query.upper().lower(), f" {query}  ", "\u200b".join(query), query.replace(" ", "  ")):
        if normal_form(other) == normal_form(query):
            assert split_of(other) == split_of(query)
    assert normal_form("\u200b".join(query)) == normal_form(query)


def test_splits_have_the_shares_that_are_promised() -> None:
    splits = [split_of(f"query {n}") for n in range(2000)]
    assert [round(splits.count(name) / 2000, 1) for name in ("train", "dev", "test")] == [0.7, 0.1, 0.2]
    for one, other in (("laptop", "Laptops"), ("head set", "headset"), ("usb  hub", "usb hub")):
        assert split_of(one) == split_of(other)
