"""Speed and memory of counting the tokens of prompts, beside asking the tokenizer row by row.

    python benchmarks/bench_tokenise.py [--largest 1000000]

Prompts of ``bench_features.py``, budget full, the bundled tokenizer, batches of 1,000; ``ways.py`` says what
is measured. The tokenizer spreads a batch over the cores: by the clock, whole batches are faster still.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import datasets
import pandas as pd
from bench_features import BUDGET, Tables, base_tables, enlarge
from ways import print_table, sizes_asked

from lore_lib.artifacts import project_root
from lore_lib.features.build import build_prompts
from lore_lib.sampling.engine import load_tokenizer

WAYS = ("row by row", "datasets.map, row by row", "datasets.map, batched", "batched")
BATCH = 1_000


def lengths(tokenizer: Any, prompts: list[str]) -> list[int]:
    """Tokens of each prompt, asked for in one call."""
    return [len(ids) for ids in tokenizer(prompts)["input_ids"]]


def count(way: str, prompts: list[str], tokenizer: Any) -> list[int]:
    """Tokens of each prompt."""
    if way == "row by row":
        return [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    if way == "batched":
        starts = range(0, len(prompts), BATCH)
        return [n for at in starts for n in lengths(tokenizer, prompts[at : at + BATCH])]
    data = datasets.Dataset.from_dict({"prompt": prompts})
    if way == "datasets.map, batched":
        counted = data.map(
            lambda batch: {"tokens": lengths(tokenizer, batch["prompt"])},
            batched=True,
            batch_size=BATCH,
            load_from_cache_file=False,
        )
    else:
        counted = data.map(
            lambda row: {"tokens": len(tokenizer(row["prompt"])["input_ids"])}, load_from_cache_file=False
        )
    return list(counted["tokens"])


def prepare(base: Tables, way: str, rows: int) -> Callable[[], list[int]]:
    """The prompts at this size, with every import done."""
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(str(project_root() / "data" / "models" / "lore-nano"))
    tables = enlarge(base, rows)
    captions = pd.Series(tables["items"].colour.to_numpy(), index=tables["items"].item_id, dtype=object)
    prompts = build_prompts(tables, captions, BUDGET).prompt.tolist()
    count(way, prompts[:100], tokenizer)
    return functools.partial(count, way, prompts, tokenizer)


if __name__ == "__main__":
    print_table(WAYS, sizes_asked(__doc__), functools.partial(prepare, base_tables()), "rows")
