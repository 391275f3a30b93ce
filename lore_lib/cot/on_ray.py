"""Ray: a session, workers that keep what they have opened, and vLLM engines behind ``ray.data.llm``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lore_lib.cot.chat import Reply, VllmChat, read_reply, vllm_sampling
from lore_lib.cot.turns import ROWS_AT_ONCE
from lore_lib.errors import ConfigError, EngineError, LoreError

_LOOP = "127.0.0.1"
_STARTS = 3
_BLOCKS_PER_WORKER = 20
_FREE = {"num_cpus": 0}


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


def has_gpus() -> bool:
    """Whether the cluster of this session has any."""
    import ray

    return "GPU" in ray.cluster_resources()


class _Each:
    """Does one thing for each number of a batch, as Ray Data passes it.

    ``failure`` says what went wrong: Ray would hand on an error without its text.
    """

    def __init__(self, make: Callable[[], Callable[[int], int]]) -> None:
        self._do = make()

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results, failures = [], []
        for number in batch["id"].tolist():
            try:
                results.append(self._do(number))
                failures.append("")
            except LoreError as error:
                results.append(0)
                failures.append(str(error))
        return {"id": batch["id"], "result": np.array(results), "failure": np.array(failures, dtype=object)}


def on_workers(
    make: Callable[[], Callable[[int], int]], numbers: Sequence[int], workers: int, gpus: float = 0
) -> Iterator[tuple[int, int]]:
    """Let a pool of actors do something for each number; gives (number, result) as they come.

    Args:
        make: makes, once in each actor, what is called with a number; picklable.
        numbers: what to go through.
        workers: actors, at most.
        gpus: of each actor.

    Raises:
        EngineError: what the actor failed with, or that it died.
    """
    import ray.data

    rows = ray.data.from_items(
        [{"id": number} for number in numbers],  # no read tasks: they would need a processor
        override_num_blocks=min(len(numbers), _BLOCKS_PER_WORKER * workers),
    ).map_batches(
        _Each,
        fn_constructor_args=(make,),
        batch_size=1,
        num_cpus=1,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
    )
    for row in _rows(rows):
        if row["failure"]:
            raise EngineError(row["failure"])
        yield row["id"], row["result"]


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    import ray.data
    from ray.exceptions import RayError

    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        raise EngineError(f"a Ray worker died; what is finished is kept, so run again: {error}") from error


def ask_vllm(model: VllmChat, asked: Mapping[int, Path], workers: int) -> Iterator[tuple[int, str, Reply]]:
    """Put requests to vLLM engines by ``ray.data.llm``; gives (number, key, reply) as they come.

    Args:
        model: which one, how it is run, and how replies are drawn; its own engine is not started.
        asked: number -> file of requests, see :mod:`lore_lib.cot.turns`.
        workers: engines, each of which takes a GPU where the cluster has any (``tensor_parallel_size`` of
            them where the model's engine says so), else a processor.

    Raises:
        ConfigError: Ray's extra llm is not installed.
        EngineError: an engine died.
    """
    import ray.data

    try:
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig
    except ImportError as error:
        raise ConfigError(
            f"cot.teacher=vllm with runtime.engine=ray needs ray.data.llm ({error}): "
            "pip install 'lore-kit[ray,vllm]' 'ray[llm]==2.60.0'"
        ) from error
    ends, draw = end_tokens(model.where), model.draw
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model.where,
            engine_kwargs=dict(model.engine),
            concurrency=(workers, workers),
            batch_size=ROWS_AT_ONCE,
            should_continue_on_error=True,  # a request that the engine refuses is one reply with a failure
            log_engine_metrics=False,
            chat_template_stage=False,  # the requests are tokens: the stage would begin a text twice
            tokenize_stage=False,
            detokenize_stage=False,
            **({} if has_gpus() else {"placement_group_config": {"bundles": [{"CPU": 1}]}}),
        ),
        preprocess=lambda row: {
            "tokenized_prompt": row["tokens"],
            "sampling_params": vllm_sampling(draw, row["schema"], row["sample"]),
        },
        postprocess=lambda row: {
            "id": row["id"],
            "key": row["key"],
            "text": row["generated_text"],
            "read": row["num_input_tokens"],
            "written": row["num_generated_tokens"],
            "finish": "stop" if set(row["generated_tokens"][-1:]) & ends else "length",
        },
        preprocess_map_kwargs=_FREE,
        postprocess_map_kwargs=_FREE,
    )
    groups = [
        {"id": number, "file": str(path), "group": group}
        for number, path in asked.items()
        for group in range(pq.ParquetFile(path).num_row_groups)
    ]
    requests = ray.data.from_items(groups, override_num_blocks=len(groups)).map_batches(
        _read_group, batch_size=1, **_FREE
    )
    for row in _rows(processor(requests)):
        refused = bool(row.get("__inference_error__"))
        reply = Reply(failure="refused") if refused else read_reply(
            row["text"], row["read"], row["written"], row["finish"]
        )  # fmt: skip
        yield row["id"], row["key"], reply


def _read_group(batch: dict[str, NDArray[Any]]) -> pa.Table:
    table = pq.ParquetFile(batch["file"][0]).read_row_group(int(batch["group"][0]))
    return table.append_column("id", pa.array([int(batch["id"][0])] * len(table)))


def end_tokens(model: str) -> frozenset[int]:
    """Tokens that end a reply of a model, as vLLM takes them from its files."""
    from transformers import AutoTokenizer, GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        named = None
    more = named if isinstance(named, list) else [named]
    return frozenset({AutoTokenizer.from_pretrained(model).eos_token_id, *more} - {None})
