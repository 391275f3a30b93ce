"""Adapter: RAIR, Taobao's benchmark of search relevance (arXiv 2512.24943), in Chinese.

Schema (README.md and inference/infer.py of github.com/luchenji/RAIR): hub data set ``chenJi/RAIR``, configs
General_Subset, Hard_Subset and Visual_Subset, split "train", with the fields query, title, item_id (int),
groundtruth (L1 to L4), shop_name, vqa_result (what a model saw in the picture), rule_list (text: the rules
applied), cpv_sku (one JSON object as text), subset, image_base64. 48,949 to 54,539 rows by version, 71 GB,
nearly all of it pictures. For academic research only.

It is a benchmark: every row becomes a pair of the test split and none is dropped, not even repeated ones.
``rule_list`` stays with the pair and ``vqa_result`` with the item as extra columns: the rules are those used
for labelling and name the level, so what a model sees of them is for the evaluation to decide. Which of the
six intents a query of the hard subset has is not published, so every intent reads "plain"; ``pairs.subset``
says general, hard or visual. CPV and SKU are one object in the data and become the CPV. There are no prices,
clicks or industries.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lore_lib.completion import parse
from lore_lib.errors import DataError, nearest
from lore_lib.vertical.adapters.frames import build_tables, query_key
from lore_lib.vertical.adapters.pictures import decode_picture
from lore_lib.vertical.adapters.rows import Problems, ReadReport, Row, read_rows, text_of
from lore_lib.vertical.contract import Tables

HUB = "chenJi/RAIR"

SUBSETS: dict[str, str] = {"General_Subset": "general", "Hard_Subset": "hard", "Visual_Subset": "visual"}
"""Config on the hub -> subset of a benchmark."""

COLUMNS = ("query", "title", "item_id", "groundtruth", "shop_name", "vqa_result", "rule_list", "cpv_sku")
PICTURE = "image_base64"

SUFFIXES = (".parquet", ".jsonl", ".arrow")


def read(
    folder: Path | None, subsets: Collection[str] = tuple(SUBSETS), report: ReadReport | None = None
) -> Tables:
    """Read whole subsets into checked tables, without their pictures; see ``read_batches`` for the rest.

    Of a folder's Parquet and Arrow files the pictures are not even read.

    Raises:
        DataError: see ``read_batches``.
    """
    parts = list(read_batches(folder, subsets, pictures=False, report=report))
    whole = {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}
    for name, key in (("items", "item_id"), ("queries", "query_id")):
        whole[name] = whole[name].drop_duplicates(key, ignore_index=True)
    return build_tables(folder or HUB, **whole)


def read_batches(
    folder: Path | None,
    subsets: Collection[str] = tuple(SUBSETS),
    batch_rows: int = 64,
    pictures: bool = True,
    report: ReadReport | None = None,
) -> Iterator[Tables]:
    """The benchmark as a stream of small checked tables; memory holds one batch, pictures included.

    Every batch is complete in itself: an item or query that an earlier batch had is given again. Keys agree
    between batches, and between runs over the same subsets: a query's is a hash of its text, a pair's its
    subset and row; an item keeps its number, and where a number comes back with another title, shop,
    attributes or picture description, the second content is the item ``<number>~2``.

    Args:
        folder: holds ``General_Subset/*.parquet`` and so on (or .jsonl, .arrow, at any depth), as ``hf
            download chenJi/RAIR --repo-type dataset --local-dir <folder>`` writes them; None streams from
            the hub.
        subsets: of ``SUBSETS``.
        batch_rows: rows of a batch; a row with its picture is 1 to 2 MB.
        pictures: False leaves all pictures empty.
        report: counts missing and broken pictures, attributes that are no JSON (kept as one text), items of
            changed content, and mismatches that name no dimension.

    Raises:
        DataError: an unknown subset, no files or no network, missing columns, or rows without query, item or
            a known label (those of one batch are listed together).
    """
    report = ReadReport() if report is None else report
    if not subsets:
        raise DataError(f"no subset was asked for; known: {', '.join(SUBSETS)}")
    for subset in subsets:
        if subset not in SUBSETS:
            raise DataError(f"subset {subset!r} is not in the data; {nearest(subset, SUBSETS)}")
    contents: dict[str, list[bytes]] = {}
    for subset in subsets:
        problems = Problems(f"{folder or HUB}/{subset}")
        columns = (*COLUMNS, PICTURE) if pictures else COLUMNS
        rows = enumerate(_rows(folder, subset, columns, batch_rows, problems), start=1)
        while batch := list(itertools.islice(rows, batch_rows)):
            built = [_row(row, SUBSETS[subset], number, contents, problems, report) for number, row in batch]
            if pictures:
                for (item, _, _), (_, row) in zip(built, batch, strict=True):
                    item["picture"] = _picture(row, report)
            problems.raise_any()
            items, queries, pairs = zip(*built, strict=True)
            yield build_tables(
                problems.where,
                pd.DataFrame(items).drop_duplicates("item_id", ignore_index=True),
                pd.DataFrame(queries).drop_duplicates("query_id", ignore_index=True),
                pd.DataFrame(pairs),
            )
        problems.raise_any()


def _rows(
    folder: Path | None, subset: str, columns: Collection[str], batch_rows: int, problems: Problems
) -> Iterator[Row]:
    if folder is None:
        yield from _hub_rows(subset, columns)
        return
    files = sorted(path for path in (folder / subset).rglob("*") if path.suffix in SUFFIXES)
    if not files:
        raise DataError(
            f"{folder / subset} holds no {', '.join(SUFFIXES)} file. Fetch it with: hf download {HUB} "
            f"--repo-type dataset --include '{subset}/*' --local-dir {folder}; or pass None to stream it"
        )
    for path in files:
        yield from read_rows(path, columns, problems, batch_rows=batch_rows)


def _hub_rows(subset: str, columns: Collection[str]) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        stream = load_dataset(HUB, subset, split="train", streaming=True).select_columns(list(columns))
        for number, values in enumerate(stream, start=1):
            yield Row(f"{HUB}/{subset}", number, values)
    except (OSError, ValueError) as error:  # no network, no access, no such data set or column
        cause = f"{type(error).__name__}: {error!s:.200}"
        raise DataError(
            f"{HUB}/{subset} cannot be streamed ({cause}). Where there is a network, hf download {HUB} "
            "--repo-type dataset --local-dir <folder>; then pass that folder"
        ) from error


def _row(
    row: Row,
    subset: str,
    number: int,
    contents: dict[str, list[bytes]],
    problems: Problems,
    report: ReadReport,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The item, query and pair of one row."""
    query = text_of(row, "query", problems, required=True)
    told = {name: text_of(row, name, problems) for name in ("title", "shop_name", "cpv_sku", "vqa_result")}
    label, mismatch = _label(row, problems, report)
    item = {
        "item_id": _item_id(row, told, contents, problems, report),
        "title": told["title"],
        "shop": told["shop_name"],
        "cpv": _cpv(told["cpv_sku"], row, report),
        "vqa_result": told["vqa_result"],
    }
    query_id = query_key(query)
    pair = {
        "pair_id": f"rair-{subset}-{number:06d}",
        "query_id": query_id,
        "item_id": item["item_id"],
        "label": label,
        "mismatch": mismatch,
        "kind": "visual" if subset == "visual" else "plain",
        "split": "test",
        "subset": subset,
        "rule_list": text_of(row, "rule_list", problems),
    }
    return item, {"query_id": query_id, "query": query, "split": "test"}, pair


def _label(row: Row, problems: Problems, report: ReadReport) -> tuple[str, str]:
    """Label and dimension: "L4" is L4 and none, "L2-Color Mismatch" is L2 and color; brackets may stand."""
    found = text_of(row, "groundtruth", problems).strip()
    bare = found.removeprefix("[").removesuffix("]")
    answer = parse(f"[{bare}]")
    if answer.kind == "ok":
        return answer.label, answer.mismatch
    level = parse(f"[{bare.partition('-')[0]}]")
    if level.kind == "ok":
        report.note("mismatch that names no dimension, left empty", row.where)
        return level.label, ""
    problems.add(row, "groundtruth", f"is {found!r:.60}; use L1, L2, L3, L4 or [L2-Color Mismatch]")
    return "", ""


def _item_id(
    row: Row, told: dict[str, str], contents: dict[str, list[bytes]], problems: Problems, report: ReadReport
) -> str:
    item_id = text_of(row, "item_id", problems, required=True)
    digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=16).digest()
    known = contents.setdefault(item_id, [])
    if digest not in known:
        known.append(digest)
        if len(known) > 1:
            report.note("item id with another content, kept as its own item", f"{item_id}~{len(known)}")
    place = known.index(digest) + 1
    return item_id if place == 1 else f"{item_id}~{place}"


def _cpv(text: str, row: Row, report: ReadReport) -> str:
    """The attributes as a flat JSON object of texts; a text that is none becomes its only value."""
    if not text.strip():
        report.note("no attributes", row.where)
        return "{}"
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        report.note("cpv_sku is no JSON object, kept as one text", row.where)
        told = {"cpv_sku": text}
    flat = {name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for name, v in told.items()}
    return json.dumps(flat, ensure_ascii=False).encode("utf-8", "replace").decode()  # half an emoji becomes ?


def _picture(row: Row, report: ReadReport) -> bytes:
    value = row.values.get(PICTURE)
    picture, reason = decode_picture(value) if isinstance(value, str) else (b"", "no picture")
    if reason:
        report.note(reason, row.where)
    return picture
