"""The run's own LLM, in processes of its own: its decoding loop would hold up the service's event loop."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from lore_lib.errors import EngineError
from lore_lib.parallel import start_worker

if TYPE_CHECKING:
    from lore_lib.config import Config
    from lore_lib.sampling.engine import HfEngine

_held: list[HfEngine] = []  # in a worker: the one engine


class LocalLlm:
    """Prompts to labels, "" where the LLM wrote none, by greedy decoding.

    Args:
        base: folder of the weights.
        config: model.dtype, model.device, sampling.max_completion_tokens, service.llm_workers.

    Raises:
        EngineError: it cannot be loaded; from a call: its process died, and another one has been started.
    """

    def __init__(self, base: str, config: Config) -> None:
        self._base, self._config = base, config
        self._pool = self._start()
        self(["query: warm up"])

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Blocks until the labels are there, without holding up other threads."""
        pool = self._pool
        try:
            return pool.submit(_judge, list(prompts), self._config.sampling.max_completion_tokens).result()
        except BrokenProcessPool as error:
            if self._pool is pool:
                self._pool = self._start()
            raise EngineError(
                f"the process of the LLM {self._base} died, most often for lack of memory"
            ) from error

    def close(self) -> None:
        """End its processes."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        model = self._config.model
        return ProcessPoolExecutor(
            self._config.service.llm_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_load,
            initargs=(self._base, model.dtype, model.device),
        )


def _load(base: str, dtype: str, device: str) -> None:
    start_worker()
    from lore_lib.sampling.engine import HfEngine, load_model, load_tokenizer

    _held[:] = [HfEngine(load_model(base, dtype, device), load_tokenizer(base))]


def _judge(prompts: list[str], max_completion_tokens: int) -> list[str]:
    from lore_lib.completion import parse
    from lore_lib.sampling.engine import Sampling

    greedy = Sampling(n=1, temperature=0.0, max_completion_tokens=max_completion_tokens)
    return [parse(drawn[0].text).label for drawn in _held[0].generate(prompts, greedy)]
