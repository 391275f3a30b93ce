"""Sampling with offline vLLM; needs the extra ``vllm``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lore_lib.errors import EngineError
from lore_lib.sampling.engine import (
    Drawn,
    Generation,
    Sampling,
    chat_text,
    check_context,
    read_tokens,
    resolve_model,
)

ADAPTER = "adapter_config.json"
"""Its presence tells that a folder holds a PEFT adapter and not a whole model."""


LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The room that vLLM makes for an adapter comes in these sizes."""


class VllmEngine:
    """Continuous batching with a shared prefix: the n completions of a prompt read it once.

    Args:
        llm: a ``vllm.LLM``.
        tokenizer: of its model.
        adapter: a ``LoRARequest``, if an adapter is to be on.
        bar: whether vLLM shows its progress.
    """

    name = "vllm"

    def __init__(
        self, llm: Any, tokenizer: PreTrainedTokenizerBase, adapter: Any = None, bar: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self._llm, self._adapter, self._bar = llm, adapter, bar

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Generation]]:
        """See :class:`lore_lib.sampling.engine.Engine`."""
        drawn = self.draw([chat_text(self.tokenizer, prompt) for prompt in prompts], sampling)
        return [[read_tokens(self.tokenizer, one.tokens) for one in group] for group in drawn]

    def draw(
        self, texts: Sequence[str], sampling: Sampling, share: tuple[int, int] = (0, 1)
    ) -> list[list[Drawn]]:
        """See :class:`lore_lib.sampling.engine.Engine`."""
        from vllm import SamplingParams, TokensPrompt

        mine = range(share[0], len(texts), share[1])
        drawn: list[list[Drawn]] = [[] for _ in texts]
        if not mine:
            return drawn
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        check_context([len(row) for row in ids], sampling, self._llm.model_config.max_model_len)
        distinct = sampling.n if sampling.temperature else 1  # several greedy ones are refused
        how = [
            SamplingParams(
                n=distinct,
                temperature=sampling.temperature,
                top_p=1.0,
                top_k=0,
                max_tokens=sampling.max_completion_tokens,
                seed=sampling.seed_of(place, 0),  # vLLM counts on from it for the other samples
                stop_token_ids=[self.tokenizer.eos_token_id],
                logprobs=0,  # of the tokens drawn alone
                detokenize=False,
            )
            for place in mine
        ]
        asked = [TokensPrompt(prompt_token_ids=ids[place]) for place in mine]
        done = self._llm.generate(asked, how, lora_request=self._adapter, use_tqdm=self._bar)
        for place, request in zip(mine, done, strict=True):
            drawn[place] = [_drawn(output) for output in request.outputs] * (sampling.n // distinct)
        return drawn


def _drawn(output: Any) -> Drawn:
    tokens = list(output.token_ids)
    scores = [at[token].logprob for token, at in zip(tokens, output.logprobs, strict=True)]
    return Drawn(tokens, scores)


def open_vllm(
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str = "bfloat16",
    tensor_parallel: int = 1,
    **engine: Any,
) -> VllmEngine:
    """Start vLLM in this process.

    Args:
        model: folder (of a model, or of an adapter on one) or hub name.
        tokenizer: of the model.
        dtype: of the weights.
        tensor_parallel: GPUs that one model is spread over.
        engine: further arguments of ``vllm.LLM``, such as ``gpu_memory_utilization``.

    Raises:
        EngineError: vLLM is not installed.
    """
    try:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
    except ImportError as error:
        raise EngineError(
            f"sampling.engine=vllm, but it cannot be imported ({error}): pip install lore-kit[vllm], "
            "or use sampling.engine=hf"
        ) from error
    if current_platform.is_cpu():  # a prompt read in chunks wants a step back in its seeded generator
        engine.setdefault("enable_chunked_prefill", False)  # which torch's have on GPUs alone
    path, adapter = resolve_model(model), None
    if (Path(path) / ADAPTER).is_file():
        facts = json.loads((Path(path) / ADAPTER).read_text(encoding="utf-8"))
        adapter = LoRARequest("adapter", 1, path)
        room = next((rank for rank in LORA_RANKS if rank >= facts["r"]), facts["r"])
        engine |= {"enable_lora": True, "max_lora_rank": room}
        path = resolve_model(facts["base_model_name_or_path"])
    llm = LLM(
        model=path,
        dtype=dtype,
        tensor_parallel_size=tensor_parallel,
        enable_prefix_caching=True,
        generation_config="vllm",  # not the model's own defaults, which may cut the distribution
        **engine,
    )
    return VllmEngine(llm, tokenizer, adapter)
