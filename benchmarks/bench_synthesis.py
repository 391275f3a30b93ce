"""Batch synthesis at rising sizes: in one process, on Ray Data with one and two workers, and from the cache.

    python benchmarks/bench_synthesis.py [--largest 100000]

Rows of the bundled world are repeated up to the size, in shards of 2,048 pairs. Seconds are wall clock, and
``CPU s`` that of this process and its finished children (Ray's workers are not among them): on a busy machine
only the ratios of one table mean something. Starting Ray is timed apart: it costs the same at every size.

The staged rows have a model that answers at once, so they time everything but the model: prompts, reading
replies, the funnel, and SQLite. ``tokens`` are characters by four, for a bill at prices of your own.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from ways import sizes_asked

from lore_lib.artifacts import write_parquet
from lore_lib.config import load_config
from lore_lib.cot.batch import SHARD_PAIRS, prepare_batch, run_batch
from lore_lib.cot.chat import Arrived, Reply, Request, ignore
from lore_lib.cot.on_ray import ray_workers
from lore_lib.cot.replies import ReplyCache
from lore_lib.cot.staged import StagedTeacher
from lore_lib.cot.synthesis import Synthesis, in_shards, pair_rows, synthesise_to
from lore_lib.features.build import build_prompts, caption_items
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.vertical.definition import load_vertical
from lore_lib.vertical.world import generate_tables

QUERIES, STAGED = 250, 10_000


class Instant:
    """A chat model that calls every demand met, at once."""

    name = "instant"
    identity: dict[str, Any] = {"model": "instant"}  # noqa: RUF012 - never changed

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        replies = [self._reply(request) for request in requests]
        for place, reply in enumerate(replies):
            arrived(place, reply)
        return replies

    def _reply(self, request: Request) -> Reply:
        first = request.messages[0]["content"]
        word = first.rpartition("query: ")[2].split()[0]
        step = {"said": word, "dimension": "color", "value": word, "negated": False, "found": "none"}
        text = json.dumps({"path": [step | {"verdict": "near", "why": "It is not told."}], "label": "L3"})
        read = sum(len(message["content"]) for message in request.messages) // 4
        return Reply(text, read, len(text) // 4)


def timed(what: str, pairs: int, work: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    made = work()
    wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
    print(f"{what:34}{pairs:>10,}{wall:>9.1f}{cpu:>9.1f}{pairs / wall:>11,.0f}", flush=True)
    return made


def main() -> None:
    vertical = load_vertical("apparel_home")
    tables = generate_tables(vertical, {"train": QUERIES}, 4, 2, 17)
    captions = caption_items(tables["items"], PixelCaptioner(vertical))
    prompts = build_prompts(tables, captions, "mid")
    print(f"{'way':34}{'pairs':>10}{'wall s':>9}{'CPU s':>9}{'pairs/s':>11}")
    for size in sizes_asked(__doc__):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            many = pd.concat([prompts] * -(-size // len(prompts)), ignore_index=True).head(size)
            seen = captions.rename("picture").rename_axis("item_id").reset_index()
            for table, frame in (tables | {"prompts": many, "captions": seen}).items():
                write_parquet(frame, folder / "in" / f"{table}.parquet")
            config = load_config("demo", overrides={"cot.pairs": size})
            batch = timed(
                "laying out rows and index", size,
                lambda folder=folder, config=config: prepare_batch(
                    folder / "out", folder / "in", config, "progressive"
                ),
            )  # fmt: skip
            timed("one process", size, lambda batch=batch: run_batch(batch))
            timed("one process again: all is there", size, lambda batch=batch: run_batch(batch))
            for workers in (1, 2):
                settings = {"cot.pairs": size, "runtime.engine": "ray", "runtime.workers": workers}
                spread = replace(batch, config=load_config("demo", overrides=settings))
                for shard in (folder / "out" / "traces").iterdir():
                    shard.unlink()
                start = time.perf_counter()
                with ray_workers(workers):
                    print(f"{'  Ray started':34}{'':>10}{time.perf_counter() - start:>9.1f}")
                    timed(f"Ray Data, {workers} workers", size, lambda spread=spread: run_batch(spread))
    rows = pair_rows(tables, pd.concat([prompts] * (STAGED // len(prompts)), ignore_index=True), captions)
    rows = rows.assign(query=[f"no{n} {text}" for n, text in enumerate(rows["query"])])
    with tempfile.TemporaryDirectory() as name:
        for turn in ("first", "again, from the cache"):
            teacher = StagedTeacher(
                Instant(), vertical, ("vision", "rules"), cache=ReplyCache(Path(name) / "replies.sqlite")
            )
            out = Path(name) / turn.partition(",")[0]
            synthesis = Synthesis("without knowledge", teacher, "drop")
            timed(f"staged, 3 turns, {turn}", STAGED,
                  lambda out=out, synthesis=synthesis: synthesise_to(
                      out, in_shards(rows, SHARD_PAIRS), synthesis))  # fmt: skip
            spent = teacher.spending(prompt_price=1.0, completion_price=1.0)
            print(spent.round(2).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
