"""The RAIR adapter on hand-made rows of the published fields."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from lore_lib.errors import DataError
from lore_lib.vertical.adapters import rair
from lore_lib.vertical.adapters.rows import ReadReport


def picture(color: str, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(out, kind)
    return out.getvalue()


def sample(**other: Any) -> dict[str, Any]:
    return {
        "query": "狗胸背带大型犬",
        "title": "狗狗牵引绳",
        "item_id": 623055365352,
        "groundtruth": "L4",
        "shop_name": "旗舰店",
        "vqa_result": "骑士灰套装",
        "rule_list": "1. 所属规则: 主配件匹配\n搜主件返回主件判定为L4。",
        "cpv_sku": '{"品牌":"surepet","是否可伸缩":"是"}',
        "subset": "general_set_image",
        "image_base64": base64.b64encode(picture("grey")).decode(),
    } | other


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    pd.DataFrame(rows).to_parquet(path.with_suffix(".parquet"))


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8")


def write_arrow(rows: list[dict[str, Any]], path: Path) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path.with_suffix(".arrow")), table.schema) as sink:
        sink.write_table(table, max_chunksize=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for subset in rair.SUBSETS:
        (tmp_path / subset / "data").mkdir(parents=True)
    return tmp_path


def one_row(folder: Path, report: ReadReport | None = None, **other: Any) -> dict[str, pd.DataFrame]:
    write_parquet([sample(**other)], folder / "Hard_Subset" / "one")
    return next(rair.read_batches(folder, ["Hard_Subset"], report=report))


@pytest.mark.parametrize("write", [write_parquet, write_jsonl, write_arrow])
def test_each_format_gives_the_same_tables(folder: Path, write: Callable[..., None]) -> None:
    rows = [
        sample(),
        sample(query="猫粮", groundtruth="L1"),
        sample(item_id=7, title="猫粮", groundtruth="L3"),
    ]
    for subset in rair.SUBSETS:
        write(rows, folder / subset / "data" / "train-00000-of-00001")
    tables = rair.read(folder)
    assert {name: len(table) for name, table in tables.items()} == {
        "items": 2,
        "queries": 2,
        "pairs": 9,
        "clicks": 0,
    }
    pairs = tables["pairs"]
    assert pairs.subset.unique().tolist() == ["general", "hard", "visual"]
    assert pairs.kind.tolist() == ["plain"] * 6 + ["visual"] * 3
    assert set(pairs.split) == {"test"}
    assert pairs.pair_id[0] == "rair-general-000001"
    assert pairs.rule_list[0].startswith("1. 所属规则")
    item = tables["items"].set_index("item_id").loc["623055365352"]
    assert json.loads(item.cpv) == {"品牌": "surepet", "是否可伸缩": "是"}
    assert (item["shop"], item["vqa_result"], item["picture"]) == ("旗舰店", "骑士灰套装", b"")


def test_batches_hold_few_rows_and_join_to_the_whole(folder: Path) -> None:
    rows = [sample(query=f"问 {n % 3}", item_id=n % 4) for n in range(10)]
    write_parquet(rows[:6], folder / "General_Subset" / "a")
    write_jsonl(rows[6:], folder / "General_Subset" / "b")
    batches = list(rair.read_batches(folder, ["General_Subset"], batch_rows=4))
    assert [len(batch["pairs"]) for batch in batches] == [4, 4, 2]
    assert all(batch["items"].picture.map(len).min() > 0 for batch in batches)
    whole = rair.read(folder, ["General_Subset"])
    joined = pd.concat([batch["pairs"] for batch in batches], ignore_index=True)
    pd.testing.assert_frame_equal(joined, whole["pairs"])
    assert len(whole["items"]) == 4


def test_the_stream_reads_no_further_than_it_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def endless(*_: object, **__: object) -> Iterator[rair.Row]:
        for number in range(1, 10**9):
            asked.append(number)
            yield rair.Row("file", number, sample(item_id=number))

    monkeypatch.setattr(rair, "_rows", endless)
    stream = rair.read_batches(folder, batch_rows=8)
    assert len(next(stream)["pairs"]) == 8
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("groundtruth", "label", "mismatch"),
    [
        ("L1", "L1", ""),
        ("[L2]", "L2", ""),
        ("[L2-Color Mismatch]", "L2", "color"),
        ("L2-Main/Accessory Mismatch", "L2", "component"),
        ("L2-颜色", "L2", ""),
    ],
)
def test_a_label_may_carry_its_mismatch(folder: Path, groundtruth: str, label: str, mismatch: str) -> None:
    pair = one_row(folder, groundtruth=groundtruth)["pairs"].iloc[0]
    assert (pair["label"], pair["mismatch"]) == (label, mismatch)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"cpv_sku": "{品牌"}, "cpv_sku is no JSON object, kept as one text"),
        ({"cpv_sku": "[1]"}, "cpv_sku is no JSON object, kept as one text"),
        ({"cpv_sku": "[" * 10**5}, "cpv_sku is no JSON object, kept as one text"),
        ({"cpv_sku": ""}, "no attributes"),
        ({"image_base64": ""}, "no picture"),
        ({"image_base64": None}, "no picture"),
        ({"image_base64": "狗"}, "picture is no base64"),
        ({"image_base64": "aGVsbG8="}, "picture cannot be read as PNG or JPEG"),
        ({"groundtruth": "L2-颜色"}, "mismatch that names no dimension, left empty"),
    ],
)
def test_oddities_are_kept_and_counted(folder: Path, other: dict[str, Any], reason: str) -> None:
    report = ReadReport()
    tables = one_row(folder, report, **other)
    assert report.counts == {reason: 1}
    assert report.first[reason] == ["one.parquet:1"]
    assert len(tables["pairs"]) == 1


def test_attributes_of_any_shape_become_texts_that_can_be_stored(folder: Path) -> None:
    cpv = one_row(folder, cpv_sku='{"尺码": ["S", "M"], "半": "\\ud83d", "n": 1}')["items"].cpv[0]
    assert json.loads(cpv) == {"尺码": '["S", "M"]', "半": "?", "n": "1"}
    assert json.loads(one_row(folder, cpv_sku="{品牌")["items"].cpv[0]) == {"cpv_sku": "{品牌"}


def test_an_item_id_with_another_content_becomes_an_item_of_its_own(folder: Path) -> None:
    rows = [sample(), sample(query="b"), sample(title="别的", query="c"), sample(title="别的", query="d")]
    write_parquet(rows, folder / "General_Subset" / "a")
    report = ReadReport()
    tables = rair.read(folder, ["General_Subset"], report)
    number = "623055365352"
    assert tables["pairs"].item_id.tolist() == [number, number, f"{number}~2", f"{number}~2"]
    assert report.first == {"item id with another content, kept as its own item": [f"{number}~2"]}


def test_wrong_rows_are_listed_together(folder: Path) -> None:
    rows = [sample(groundtruth="L5"), sample(query=" "), sample(title=None), sample(groundtruth=None)]
    write_jsonl([*rows, sample(item_id=None)], folder / "General_Subset" / "a")
    with pytest.raises(DataError, match="4 problems") as caught:
        rair.read(folder, ["General_Subset"])
    for says in (
        "a.jsonl:1: field 'groundtruth' is 'L5'; use L1",
        "a.jsonl:2: field 'query' is ' '",
        "a.jsonl:4: field 'groundtruth' is ''",
        "a.jsonl:5: field 'item_id' is ''",
    ):
        assert says in str(caught.value)


def test_a_missing_field_subset_or_file_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="hf download chenJi/RAIR --repo-type dataset"):
        rair.read(folder, ["General_Subset"])
    with pytest.raises(DataError, match="did you mean 'Hard_Subset'"):
        rair.read(folder, ["hard_Subset"])
    with pytest.raises(DataError, match="no subset was asked for"):
        rair.read(folder, [])
    write_parquet([{"query": "x", "titel": "y"}], folder / "General_Subset" / "a")
    with pytest.raises(DataError, match="no column 'title'; did you mean 'titel'"):
        rair.read(folder, ["General_Subset"])


def test_the_hub_is_streamed_and_its_absence_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(list[dict[str, Any]]):
        def select_columns(self, columns: list[str]) -> "Stream":
            return Stream({column: row[column] for column in columns} for row in self)

    def load(name: str, subset: str, split: str, streaming: bool) -> Stream:
        assert (name, split, streaming) == ("chenJi/RAIR", "train", True)
        return Stream([sample(title=subset)])

    monkeypatch.setattr("datasets.load_dataset", load)
    assert rair.read(None)["items"].title.tolist() == list(rair.SUBSETS)

    def offline(*_: object, **__: object) -> Stream:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(DataError, match=r"cannot be streamed \(ConnectionError: no route.*hf download"):
        rair.read(None)
