"""Speed and memory of writing prompts, beside the plain per-row ways.

    python benchmarks/bench_features.py [--largest 1000000]

Items and queries of the bundled world, repeated under fresh ids and titles, one item a pair; ``ways.py`` says
what is measured.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import datasets
import numpy as np
import pandas as pd
from ways import print_table, sizes_asked

from lore_lib.artifacts import project_root
from lore_lib.features.build import build_prompts, stream_prompts
from lore_lib.features.prompts import item_sections, render_prompt
from lore_lib.sampling.engine import load_tokenizer
from lore_lib.vertical.definition import load_vertical
from lore_lib.vertical.world import generate_tables

BUDGET = "full"
BASE_QUERIES = 200
WAYS = (
    "pandas apply",
    "datasets.map",
    "build_prompts",
    "stream_prompts",
    "stream_prompts, tokens counted",
)

Tables = dict[str, pd.DataFrame]


def base_tables() -> Tables:
    """A small world without its pictures; the captions are the true colours."""
    tables = generate_tables(load_vertical("apparel_home"), {"train": BASE_QUERIES}, 4, 0, 17)
    colour = tables["items"].truth.map(lambda text: json.loads(text)["color"])
    return tables | {"items": tables["items"].drop(columns="picture").assign(colour=colour)}


def enlarge(base: Tables, pairs: int) -> Tables:
    """The tables repeated to this many pairs, each with its own item, four to a query."""
    number = np.arange(pairs)
    items = base["items"].iloc[number % len(base["items"])].reset_index(drop=True)
    ids, titles = [f"i{i}" for i in number], [f"{title} {i}" for i, title in enumerate(items.title)]
    queries = base["queries"].iloc[number[: -(-pairs // 4)] % BASE_QUERIES].reset_index(drop=True)
    queries["query_id"] = [f"q{i}" for i in range(len(queries))]
    judged = base["pairs"].iloc[number % len(base["pairs"])].reset_index(drop=True)
    keys = {"pair_id": [f"p{i}" for i in number], "item_id": ids, "query_id": [f"q{i // 4}" for i in number]}
    return {
        "items": items.assign(item_id=ids, title=titles),
        "queries": queries,
        "pairs": judged.assign(**keys),
    }


def merged(tables: Tables) -> pd.DataFrame:
    """One row a pair with all its fields, as the plain ways want it."""
    frame = tables["pairs"].merge(tables["queries"][["query_id", "query"]], on="query_id")
    return frame.merge(tables["items"], on="item_id")


def prompt_of(row: dict[str, str]) -> str:
    """The plain way: one pair at a time."""
    return render_prompt(row["query"], item_sections(row, row["colour"]), BUDGET)


def write(way: str, tables: Tables) -> None:
    """Write every prompt once and let it go."""
    items = tables["items"]
    captions = pd.Series(items.colour.to_numpy(), index=items.item_id.to_numpy(), dtype=object)
    if way == "build_prompts":
        build_prompts(tables, captions, BUDGET)
    elif way == "stream_prompts":
        sum(len(chunk) for chunk in stream_prompts(tables, captions, BUDGET))
    elif way == "stream_prompts, tokens counted":
        tokenizer = load_tokenizer(str(project_root() / "data" / "models" / "lore-nano"))
        sum(len(chunk) for chunk in stream_prompts(tables, captions, BUDGET, tokenizer=tokenizer))
    elif way == "pandas apply":
        merged(tables).apply(prompt_of, axis=1)
    else:
        data = datasets.Dataset.from_pandas(merged(tables))
        data.map(lambda row: {"prompt": prompt_of(row)}, load_from_cache_file=False)


def prepare(base: Tables, way: str, pairs: int) -> Callable[[], None]:
    """The tables at this size, with every import done."""
    datasets.disable_progress_bars()
    write(way, enlarge(base, 100))
    return functools.partial(write, way, enlarge(base, pairs))


if __name__ == "__main__":
    print_table(WAYS, sizes_asked(__doc__), functools.partial(prepare, base_tables()))
