"""Speed and memory of writing prompts, beside the plain per-row ways, in one run.

    python benchmarks/bench_features.py [--sizes 1000 10000 100000 1000000]

Every way runs in a process of its own over the same tables: items and queries of the bundled world, repeated
under fresh ids and titles, one item a pair. ``CPU s`` is the processor time of the writing alone, because a
busy machine stretches the wall clock; ``MB`` is the peak of resident memory above that of the loaded tables.
The growth is the slope of log CPU seconds over log pairs from one size to the next: 1.00 is linear.
"""
# ruff: noqa: T201  (a benchmark prints its table)

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable

import datasets
import numpy as np
import pandas as pd

from lore_lib.artifacts import project_root
from lore_lib.features.build import build_prompts, stream_prompts
from lore_lib.features.prompts import item_sections, render_prompt
from lore_lib.sampling.engine import load_tokenizer
from lore_lib.vertical.definition import load_vertical
from lore_lib.vertical.world import generate_tables

SIZES = (1_000, 10_000, 100_000)
BUDGET = "full"
BASE_QUERIES = 200
PLAIN = ("pandas apply", "datasets.map")

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


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(way: str, base: Tables, pairs: int, say: Callable[[tuple[float, float]], None]) -> None:
    """In a process of its own: say CPU seconds and megabytes."""
    datasets.disable_progress_bars()
    write(way, enlarge(base, 100))  # imports, caches
    tables = enlarge(base, pairs)
    before, start = peak_megabytes(), time.process_time()
    write(way, tables)
    say((time.process_time() - start, peak_megabytes() - before))


def main() -> None:
    """Measure all ways at all sizes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of pairs, rising")
    sizes = parser.parse_args().sizes
    base, spawn = base_tables(), multiprocessing.get_context("spawn")
    ways = ("build_prompts", "stream_prompts", "stream_prompts, tokens counted", *PLAIN)
    print(f"{'way':32}{'pairs':>10}{'CPU s':>9}{'pairs/s':>10}{'MB':>8}{'growth':>8}")
    for way in ways:
        last: tuple[int, float] | None = None
        for pairs in sizes:
            heard, say = spawn.Pipe(duplex=False)
            child = spawn.Process(target=measure, args=(way, base, pairs, say.send))
            child.start()
            say.close()
            seconds, megabytes = heard.recv()
            child.join()
            growth = f"{math.log(seconds / last[1]) / math.log(pairs / last[0]):.2f}" if last else ""
            print(
                f"{way:32}{pairs:>10,}{seconds:>9.2f}{pairs / seconds:>10,.0f}{megabytes:>8.0f}{growth:>8}",
                flush=True,
            )
            last = (pairs, seconds)


if __name__ == "__main__":
    main()
