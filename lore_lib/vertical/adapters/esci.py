"""Adapter: ESCI, Amazon's Shopping Queries Dataset (arXiv 2206.06588) in English, Spanish and Japanese.

Schema (shopping_queries_dataset/README.md of github.com/amazon-science/esci-data): ``..._examples.parquet``
has example_id, query, query_id, product_id, product_locale, esci_label (E, S, C, I), small_version,
large_version (0 or 1), split (train, test); ``..._products.parquet`` has product_id, product_title,
product_description, product_bullet_point, product_brand, product_color, product_locale. A product is named by
its id *and* locale. 2.6 million judgements, 1.1 million of them in the small version; Apache-2.0. Copies on
the hub may spell labels out ("Exact") or add columns; read the original files.

Limits. Exact, Substitute, Complement, Irrelevant become L4, L3, L2, L1 in their order. The borders differ: a
substitute "fails to fulfil some aspects" and may be L3 or an L2 conflict, a complement is only ever a related
category, and a product that merely misses an attribute is mostly Irrelevant or Substitute there. There are no
prices, pictures, shops or clicks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lore_lib.errors import DataError, nearest
from lore_lib.vertical.adapters.download import Remote, fetch_files
from lore_lib.vertical.adapters.frames import build_tables, cut_words, normal_form, split_of
from lore_lib.vertical.adapters.rows import Problems, ReadReport, Row, parquet_batches, visible
from lore_lib.vertical.contract import Tables

EXAMPLES, PRODUCTS = "shopping_queries_dataset_examples.parquet", "shopping_queries_dataset_products.parquet"

LABELS: dict[str, str] = {"E": "L4", "S": "L3", "C": "L2", "I": "L1"}
"""esci_label -> label."""

LOCALES = ("us", "es", "jp")

NUMBERS = ("example_id", "query_id", "small_version")
EXAMPLE_COLUMNS = (
    "example_id", "query", "query_id", "product_id", "product_locale", "esci_label", "small_version", "split",
)  # fmt: skip
PRODUCT_COLUMNS = (
    "product_id", "product_title", "product_bullet_point", "product_brand", "product_color", "product_locale",
)  # fmt: skip
"""What is read of each file."""

_BASE = "https://media.githubusercontent.com/media/amazon-science/esci-data/7e0e3073f5ca36c0b5ff79e847cf99a74597645d"
FILES: tuple[Remote, ...] = (
    Remote(
        EXAMPLES,
        f"{_BASE}/shopping_queries_dataset/{EXAMPLES}",
        51_286_808,
        "4a735b693b4a424a6fc67f5be6e4c811495c488bbf66d02a602d308b2744263a",
    ),
    Remote(
        PRODUCTS,
        f"{_BASE}/shopping_queries_dataset/{PRODUCTS}",
        1_108_857_465,
        "25124442d064d64b26f74082d6fa09438d679efc0c183cf28d19064a2b65a265",
    ),
)
"""Sizes and checksums are those of the repository's Git LFS pointers."""

BATCH_ROWS = 16_384


def fetch(folder: Path, client: httpx.Client | None = None) -> list[Path]:
    """Download both files (1.2 GB); see ``fetch_files``."""
    return fetch_files(FILES, folder, client)


def read(
    folder: Path,
    locales: Collection[str] = ("us",),
    small: bool = True,
    max_queries: int | None = None,
    title_words: int = 24,
    point_words: int = 40,
    report: ReadReport | None = None,
) -> Tables:
    """Read both files into checked tables; memory holds what is kept and one batch of rows.

    The official split is kept: test is test, and queries of train whose ``split_of`` says dev become dev (one
    in ten). A train query that test holds too, maybe spelt differently, is left out. Item ids are
    ``<locale>:<product_id>``; the CPV is brand and color, the selling points are the first words of the
    bullet points.

    Args:
        folder: holds both files.
        locales: of ``LOCALES``.
        small: only the small version (task 1, the harder queries).
        max_queries: keep only so many queries, drawn by a hash of their normal form, else all.
        title_words: words kept of a title.
        point_words: words kept of the bullet points.
        report: counts what is left out, and products without a title.

    Raises:
        DataError: files or columns are missing or damaged, an id or query is missing, a label, split or
            locale is unknown; all of it is listed.
    """
    report = ReadReport() if report is None else report
    problems = Problems(folder)
    for locale in locales:
        if locale not in LOCALES:
            raise DataError(f"locale {locale!r} is not in the data; {nearest(locale, LOCALES)}")
    examples = _examples(folder / EXAMPLES, locales, small, problems)
    problems.raise_any()
    examples = _without_leaks(examples, report)
    if max_queries is not None:
        forms = pd.Series(examples["form"].unique())
        drawn = forms.iloc[forms.map(_draw).argsort().iloc[:max_queries]]
        examples = examples[examples["form"].isin(drawn)]
    items = _products(folder / PRODUCTS, examples, title_words, point_words, problems, report)
    if items.empty and not problems:
        said = f"holds none of the {examples['item_id'].nunique()} products that are judged"
        problems.add_file(PRODUCTS, f"{said}; take both files from one release")
    problems.raise_any()
    examples = _first(examples, ["query_id", "item_id"], "repeated judgement, left out", report)
    known = examples["item_id"].isin(items["item_id"])
    for item_id in examples.loc[~known, "item_id"]:
        report.note("judgement of a product that is not in the products file, left out", item_id)
    examples = examples[known].reset_index(drop=True)
    queries = examples.drop_duplicates("query_id")[["query_id", "query", "split"]].reset_index(drop=True)
    pairs = examples[["pair_id", "query_id", "item_id", "label", "split"]]
    return build_tables(folder, items, queries, pairs)


def _examples(path: Path, locales: Collection[str], small: bool, problems: Problems) -> pd.DataFrame:
    """The judgements of some locales: pair_id, query_id, query, form, item_id, label, split."""
    kept = []
    for batch in parquet_batches(path, EXAMPLE_COLUMNS, problems, BATCH_ROWS, whole=NUMBERS):
        wanted = pc.is_in(batch["product_locale"].cast(pa.string()), pa.array(list(locales)))
        if small:
            wanted = pc.and_(wanted, pc.equal(batch["small_version"].cast(pa.int64()), 1))
        if len(rows := batch.filter(wanted)):
            kept.append(rows.to_pandas())
    if not kept:
        if not problems:
            problems.add_file(path.name, f"no row of the locales {', '.join(locales)}" + " is small" * small)
        return pd.DataFrame()
    rows = pd.concat(kept, ignore_index=True)
    known = {"esci_label": tuple(LABELS), "split": ("train", "test")}
    for column in ("query", "query_id", "product_id", *known):
        values = rows[column]
        fine = values.isin(known[column]) if column in known else values.map(_given)
        for number, value in zip(rows.loc[~fine, "example_id"], values[~fine], strict=True):
            fix = nearest(str(value), known[column]) if column in known else "every row needs it"
            problems.add(Row(f"{path.name}:example_id", number, {}), column, f"is {value!r:.60}; {fix}")
    forms = {query: normal_form(query) for query in rows["query"].dropna().unique()}
    return pd.DataFrame(
        {
            "pair_id": "esci-" + rows["example_id"].astype(str),
            "query_id": "esci-q" + rows["query_id"].astype(str),
            "query": rows["query"],
            "form": rows["query"].map(forms),
            "item_id": rows["product_locale"] + ":" + rows["product_id"].astype(str),
            "label": rows["esci_label"].map(LABELS),
            "split": rows["split"],
        }
    )


def _without_leaks(examples: pd.DataFrame, report: ReadReport) -> pd.DataFrame:
    """The official split, with dev cut from train, and no query in two splits."""
    test = examples["split"] == "test"
    leaks = ~test & examples["form"].isin(examples.loc[test, "form"].unique())
    for query_id, count in examples.loc[leaks, "query_id"].value_counts(sort=False).items():
        report.note("judgement of a train query that test holds too, left out", str(query_id), count)
    split = {query: split_of(query) for query in examples.loc[~test, "query"].unique()}
    dev = ~test & (examples["query"].map(split) == "dev")
    return examples.assign(split=examples["split"].mask(dev, "dev"))[~leaks]


def _products(
    path: Path,
    examples: pd.DataFrame,
    title_words: int,
    point_words: int,
    problems: Problems,
    report: ReadReport,
) -> pd.DataFrame:
    wanted = set(examples["item_id"])
    ids = pa.array(sorted({item_id.partition(":")[2] for item_id in wanted}), pa.string())
    items: dict[str, tuple[str, str, str]] = {}
    for batch in parquet_batches(path, PRODUCT_COLUMNS, problems, BATCH_ROWS, whole=()):
        for row in batch.filter(pc.is_in(batch["product_id"].cast(pa.string()), ids)).to_pylist():
            item_id = f"{row['product_locale']}:{row['product_id']}"
            if item_id not in wanted:
                continue
            if item_id in items:
                report.note("repeated product, left out", item_id)
                continue
            if not row["product_title"]:
                report.note("product without a title, kept", item_id)
            told = {"brand": row["product_brand"], "color": row["product_color"]}
            items[item_id] = (
                cut_words(row["product_title"] or "", title_words),
                json.dumps({name: value for name, value in told.items() if value}, ensure_ascii=False),
                cut_words(row["product_bullet_point"] or "", point_words),
            )
    frame = pd.DataFrame(items.values(), columns=["title", "cpv", "selling_points"])
    return frame.assign(item_id=list(items))


def _first(table: pd.DataFrame, key: list[str], reason: str, report: ReadReport) -> pd.DataFrame:
    again = table.duplicated(key)
    for pair_id in table.loc[again, "pair_id"]:
        report.note(reason, pair_id)
    return table[~again]


def _given(value: Any) -> bool:
    return not pd.isna(value) and visible(str(value))


def _draw(form: str) -> str:
    return hashlib.sha256(b"draw " + form.encode()).hexdigest()
