"""Synthesis outside notebooks: any number of pairs, in this process or on Ray Data over many workers.

The folder of a synthesis holds all that a worker needs, so that a worker needs nothing else:

    rows.parquet        the pairs, one row group a shard, read one at a time
    knowledge/          the index, memory-mapped
    inputs.json         what these two were made from, written last
    replies/00000.sqlite  what the model has said about a shard: one writer at a time, also on a shared disk
    traces/00000.parquet  the shards, each whole or absent
    manifest.json       written last

A shard is the same whoever writes it, so the engines give the same bytes. After a kill, finished shards are
kept and replies are not paid for again, whichever engine goes on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from lore_lib.artifacts import (
    MANIFEST,
    atomic_write,
    atomic_write_json,
    file_sha256,
    make_folder,
    read_parquet,
)
from lore_lib.config import Config
from lore_lib.cot.arms import open_chat_model, open_synthesis
from lore_lib.cot.chat import ChatModel
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.replies import ReplyCache
from lore_lib.cot.synthesis import Synthesis, finish_shards, in_shards, pair_rows, write_shard
from lore_lib.errors import ConfigError, DataError, EngineError, LoreError
from lore_lib.vertical.definition import Vertical, load_vertical

ROWS, KNOWLEDGE, INPUTS = "rows.parquet", "knowledge", "inputs.json"
SHARD_PAIRS = 2048
"""Pairs of a shard: about a second of the symbolic teacher, minutes of a large model."""

_SHARDS_JOINED = 64
_BLOCKS_PER_WORKER = 20
_LOOP = "127.0.0.1"
_STARTS = 3
_TABLES = ("items", "queries", "pairs", "clicks", "captions", "prompts")


@dataclass(frozen=True)
class Batch:
    """One synthesis on disk; picklable.

    Attributes:
        folder: of this synthesis alone.
        config: teacher, funnel and vertical.
        arm: "direct" or a key of :data:`lore_lib.cot.synthesis.STAGES_OF`.
    """

    folder: Path
    config: Config
    arm: str

    def shards(self) -> int:
        """How many there are."""
        return int(pq.ParquetFile(self.folder / ROWS).num_row_groups)


class Worker:
    """Writes shards of one batch; model, index and vertical are opened once.

    Args:
        batch: which one.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._rows = pq.ParquetFile(batch.folder / ROWS)

    @functools.cached_property
    def _parts(self) -> tuple[Vertical, KnowledgeIndex, ChatModel | None]:
        config = self._batch.config
        knowledge = KnowledgeIndex.load(self._batch.folder / KNOWLEDGE)
        return load_vertical(config.vertical), knowledge, open_chat_model(config)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Write the shards of these numbers (``id``), as Ray Data passes them.

        ``failure`` says what went wrong: Ray would hand on an error without its text.
        """
        failures = []
        for number in batch["id"].tolist():
            try:
                self.write(number)
                failures.append("")
            except LoreError as error:
                failures.append(str(error))
        return {"id": batch["id"], "failure": np.array(failures, dtype=object)}

    def write(self, number: int) -> None:
        """Write one shard, unless it is there."""
        vertical, knowledge, model = self._parts
        replies = self._batch.folder / "replies" / f"{number:05d}.sqlite"
        with closing(ReplyCache(replies)) if model else nullcontext() as cache:
            synthesis = open_synthesis(self._batch.config, self._batch.arm, vertical, knowledge, model, cache)
            write_shard(self._batch.folder, number, self._rows.read_row_group(number).to_pandas(), synthesis)

    def synthesis(self) -> Synthesis:
        """How the batch is written."""
        vertical, knowledge, model = self._parts
        return open_synthesis(self._batch.config, self._batch.arm, vertical, knowledge, model)


def prepare_batch(
    folder: Path, source: Path, config: Config, arm: str, shard_pairs: int = SHARD_PAIRS
) -> Batch:
    """Lay out a synthesis of train pairs; what lies there already, made from the same files, is kept.

    Args:
        folder: of this synthesis alone.
        source: folder of the features stage, or any with its tables.
        config: ``cot.pairs`` is the most pairs that are taken, in the order of the prompts.
        arm: "direct" or a key of :data:`lore_lib.cot.synthesis.STAGES_OF`.
        shard_pairs: pairs of a shard, at most.

    Raises:
        ArtifactError: a table is absent.
        DataError: there are no train pairs.
    """
    batch = Batch(make_folder(folder), config, arm)
    files = {name: source / f"{name}.parquet" for name in _TABLES}
    made = {name: file_sha256(path) for name, path in files.items() if path.is_file()}
    retrieval = {name: config.section("cot")[name] for name in ("top_clicked", "selling_points", "retrieval")}
    made |= {"pairs taken": str(config.cot.pairs), "shard": str(shard_pairs), "read": json.dumps(retrieval)}
    stamp = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    inputs = folder / INPUTS
    if inputs.is_file() and json.loads(inputs.read_text(encoding="utf-8")) == stamp:
        return batch
    inputs.unlink(missing_ok=True)
    tables = {name: read_parquet(files[name]) for name in ("items", "queries", "pairs", "clicks")}
    captions = read_parquet(files["captions"]).set_index("item_id")["picture"]
    KnowledgeIndex.of(tables, config.cot).save(make_folder(folder / KNOWLEDGE))
    parts = _train_rows(files["prompts"], tables, captions, config.cot.pairs, shard_pairs)
    atomic_write(folder / ROWS, lambda part: _write_groups(part, parts))
    atomic_write_json(inputs, stamp)
    return batch


def _train_rows(
    prompts: Path, tables: dict[str, pd.DataFrame], captions: pd.Series, most: int, shard_pairs: int
) -> Iterator[pd.DataFrame]:
    """The rows of each shard. Many shards are joined at once, for a join reads all of the tables."""
    columns = ["pair_id", "query_id", "item_id", "prompt", "label", "split"]
    left = most
    for part in pq.ParquetFile(prompts).iter_batches(_SHARDS_JOINED * shard_pairs, columns=columns):
        frame = part.to_pandas()
        train = frame[frame["split"] == "train"].head(left)
        if len(train):
            yield from in_shards(pair_rows(tables, train, captions), shard_pairs)
        left -= len(train)
        if not left:
            return


def _write_groups(path: Path, parts: Iterator[pd.DataFrame]) -> None:
    """One row group for each frame."""
    first = next(parts, None)
    if first is None:
        raise DataError("no prompts of split train: there is nothing to write about")
    schema = pa.schema([(name, pa.float64() if name == "price" else pa.string()) for name in first.columns])
    with pq.ParquetWriter(path, schema) as writer:
        for frame in (first, *parts):
            writer.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False), len(frame))


def run_batch(batch: Batch) -> Path:
    """Write all shards by ``runtime.engine``, then the manifest; returns its path.

    Raises:
        ConfigError: the engine is not installed.
        EngineError: more than half of a shard's calls failed, or a worker died; finished shards stay.
    """
    (batch.folder / MANIFEST).unlink(missing_ok=True)
    count, runtime = batch.shards(), batch.config.runtime
    worker = Worker(batch)
    if runtime.engine == "ray":
        _on_ray(batch, count, runtime.workers)
    else:
        for number in tqdm(range(count), desc="shards", unit="shard"):
            worker.write(number)
    return finish_shards(batch.folder, count, worker.synthesis().identity)


def _on_ray(batch: Batch, count: int, workers: int) -> None:
    """Ray Data streams the numbers of the shards to a pool of actors, each of which keeps its model loaded.

    A stage's replies must be read before the next stage can be asked, so an actor holds the whole teacher,
    such as a vLLM engine with its GPU, and not one stage of it.
    """
    with ray_workers(workers):
        _write_all(batch, count, workers)


@contextmanager
def ray_workers(workers: int) -> Iterator[None]:
    """A Ray session: the one that is there already, the cluster at ``RAY_ADDRESS``, or so many local workers.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: it does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("runtime.engine=ray needs the extra ray: pip install 'lore-kit[ray]'") from error
    if ray.is_initialized():
        yield
        return
    local = {"address": "local", "num_cpus": workers, "include_dashboard": False, "_node_ip_address": _LOOP}
    settings = {} if "RAY_ADDRESS" in os.environ else local
    for start in range(1, _STARTS + 1):
        try:
            ray.init(log_to_driver=False, **settings)
            break
        except Exception as error:  # it gives itself 30 seconds, which a busy machine may need more than once
            ray.shutdown()
            if start == _STARTS:
                raise EngineError(f"Ray did not start, at {_STARTS} attempts: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _write_all(batch: Batch, count: int, workers: int) -> None:
    import ray
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    gpus = float(batch.config.cot.teacher == "vllm" and "GPU" in ray.cluster_resources())
    numbers = ray.data.from_items(
        [{"id": number} for number in range(count)],  # no read tasks: they would need a processor
        override_num_blocks=min(count, _BLOCKS_PER_WORKER * workers),
    )
    written = numbers.map_batches(
        Worker,
        fn_constructor_args=(batch,),
        batch_size=1,
        num_cpus=1,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=min(workers, count)),
    )
    try:
        for row in tqdm(written.iter_rows(), total=count, desc="shards", unit="shard"):
            if row["failure"]:
                raise EngineError(row["failure"])
    except RayError as error:
        raise EngineError(f"a Ray worker died; finished shards are kept, so run again: {error}") from error
