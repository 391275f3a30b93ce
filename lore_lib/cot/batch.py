"""Synthesis outside notebooks: any number of pairs, in this process or on Ray Data over many workers.

The folder of a synthesis holds all that a worker needs, so that a worker needs nothing else:

    rows.parquet        the pairs, one row group a shard, read one at a time
    knowledge/          the index, memory-mapped
    inputs.json         what these two were made from, written last
    replies/00000.sqlite  what the model has said about a shard: one writer at a time, also on a shared disk
    asked/, said/       what a vLLM model on Ray is asked and told in this run, see lore_lib.cot.turns
    traces/00000.parquet  the shards, each whole or absent
    manifest.json       written last

A shard is the same whoever writes it, so the engines give the same bytes. After a kill, finished shards are
kept and replies are not paid for again, whichever engine goes on.

On Ray a pool of actors writes the shards, each with a teacher of its own. A vLLM teacher is asked in turns
instead, one for each stage, for all shards at once: ``ray.data.llm`` keeps its engines full, and no shard
waits for the slowest reply of another. Each turn loads the model anew, which matters to small batches only.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
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
from lore_lib.cot.chat import ChatModel, VllmChat
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.on_ray import ask_vllm, has_gpus, on_workers, ray_workers
from lore_lib.cot.replies import ReplyCache
from lore_lib.cot.synthesis import Synthesis, finish_shards, in_shards, is_written, pair_rows, write_shard
from lore_lib.cot.turns import Told, add_said, asked_file, forget, read_said, said_file, write_asked
from lore_lib.errors import DataError
from lore_lib.vertical.definition import Vertical, load_vertical

ROWS, KNOWLEDGE, INPUTS = "rows.parquet", "knowledge", "inputs.json"
SHARD_PAIRS = 2048
"""Pairs of a shard: about a second of the symbolic teacher, minutes of a large model."""

_SHARDS_JOINED = 64
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
    def _parts(self) -> tuple[Vertical, KnowledgeIndex]:
        knowledge = KnowledgeIndex.load(self._batch.folder / KNOWLEDGE)
        return load_vertical(self._batch.config.vertical), knowledge

    @functools.cached_property
    def _model(self) -> ChatModel | None:
        return open_chat_model(self._batch.config)

    def write(self, number: int) -> int:
        """Write one shard, unless it is there; returns its pairs."""
        rows = self._read(number)
        with self._synthesis(number, self._chat(number)) as synthesis:
            write_shard(self._batch.folder, number, rows, synthesis)
        return len(rows)

    def _chat(self, number: int) -> ChatModel | None:
        """The model that a shard is written with."""
        return self._model

    def identity(self) -> dict[str, Any]:
        """What decides the traces, beside the rows and the index."""
        return self._open(self._model).identity

    def _read(self, number: int) -> pd.DataFrame:
        rows: pd.DataFrame = self._rows.read_row_group(number).to_pandas()
        return rows

    @contextmanager
    def _synthesis(self, number: int, model: ChatModel | None) -> Iterator[Synthesis]:
        replies = self._batch.folder / "replies" / f"{number:05d}.sqlite"
        with closing(ReplyCache(replies)) if model else nullcontext() as cache:
            yield self._open(model, cache)

    def _open(self, model: ChatModel | None, cache: ReplyCache | None = None) -> Synthesis:
        return open_synthesis(self._batch.config, self._batch.arm, *self._parts, model, cache)


class TurnWorker(Worker):
    """Lays out what the vLLM model of a batch is to be asked, and writes shards of what it said."""

    @property
    def vllm(self) -> VllmChat:
        """The model, which is not loaded here."""
        assert isinstance(self._model, VllmChat)
        return self._model

    def _chat(self, number: int) -> Told:
        said = read_said(said_file(self._batch.folder, number))
        return Told(self.vllm.name, self.vllm.identity, said)

    def ask(self, number: int) -> int:
        """Lay out what a shard asks in this turn; returns how many requests that is."""
        rows, told = self._read(number), self._chat(number)
        with self._synthesis(number, told) as synthesis:
            if not is_written(self._batch.folder, number, rows, synthesis):
                synthesis(rows)
        tokens = self.vllm.tokens(list(told.open.values()))
        write_asked(asked_file(self._batch.folder, number), told.open, tokens)
        return len(told.open)

    def ask_first(self, number: int) -> int:
        """The same for the first turn; of what a killed run was told, only what is of use is kept."""
        said = said_file(self._batch.folder, number)
        if said.is_file():
            self.ask(number)  # which puts it into the cache
            said.unlink()
        return self.ask(number)


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
    numbers, runtime = range(batch.shards()), batch.config.runtime
    if runtime.engine == "ray":
        with ray_workers(runtime.workers):
            _on_ray(batch, numbers)
    else:
        worker = Worker(batch)
        for number in tqdm(numbers, desc="shards", unit="shard"):
            worker.write(number)
    return finish_shards(batch.folder, len(numbers), Worker(batch).identity())


def _on_ray(batch: Batch, numbers: Sequence[int]) -> None:
    """A pool of actors writes the shards; each keeps its model loaded, or has it asked beforehand."""
    workers, teacher = batch.config.runtime.workers, batch.config.cot.teacher
    if teacher == "vllm":
        _ask_in_turns(batch, numbers, workers)
    make, gpus = (TurnWorker, 0) if teacher == "vllm" else (Worker, int(teacher == "hf" and has_gpus()))
    written = on_workers(lambda: make(batch).write, numbers, workers, gpus)
    for number, _ in tqdm(written, total=len(numbers), desc="shards", unit="shard"):
        forget(batch.folder, number)


def _ask_in_turns(batch: Batch, numbers: Sequence[int], workers: int) -> None:
    """Ask a vLLM model until no shard has a request left."""
    lay_out = TurnWorker.ask_first
    while True:
        make = functools.partial(_laying_out, batch, lay_out)
        laid_out = tqdm(on_workers(make, numbers, workers), total=len(numbers), desc="requests", unit="shard")
        asked = {number: count for number, count in laid_out if count}
        if not asked:
            return
        files = {number: asked_file(batch.folder, number) for number in asked}
        replies = ask_vllm(TurnWorker(batch).vllm, files, workers)
        for number, key, reply in tqdm(replies, total=sum(asked.values()), desc="replies", unit="reply"):
            add_said(said_file(batch.folder, number), key, reply)
        lay_out = TurnWorker.ask


def _laying_out(batch: Batch, lay_out: Callable[[TurnWorker, int], int]) -> Callable[[int], int]:
    return functools.partial(lay_out, TurnWorker(batch))
