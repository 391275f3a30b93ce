"""Sampling with offline vLLM; needs the extra ``vllm``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lore_lib.errors import EngineError
from lore_lib.sampling.engine import (
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
        model: folder (of a model, or of an adapter on one) or hub name.
        tokenizer: of the model.
        dtype: of the weights.
        tensor_parallel: GPUs that one model is spread over.
        engine: further arguments of ``vllm.LLM``, such as ``gpu_memory_utilization``.

    Raises:
        EngineError: vLLM is not installed.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        dtype: str = "bfloat16",
        tensor_parallel: int = 1,
        **engine: Any,
    ) -> None:
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise EngineError(
                f"sampling.engine=vllm, but it cannot be imported ({error}): pip install lore-kit[vllm], "
                "or use sampling.engine=hf"
            ) from error
        self.tokenizer, self._adapter = tokenizer, None
        path = resolve_model(model)
        if (Path(path) / ADAPTER).is_file():
            facts = json.loads((Path(path) / ADAPTER).read_text(encoding="utf-8"))
            self._adapter = LoRARequest("adapter", 1, path)
            room = next((rank for rank in LORA_RANKS if rank >= facts["r"]), facts["r"])
            engine |= {"enable_lora": True, "max_lora_rank": room}
            path = resolve_model(facts["base_model_name_or_path"])
        self._llm = LLM(
            model=path,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel,
            enable_prefix_caching=True,
            generation_config="vllm",  # not the model's own defaults, which may cut the distribution
            **engine,
        )

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Generation]]:
        """See :class:`lore_lib.sampling.engine.Engine`."""
        from vllm import SamplingParams, TokensPrompt

        if not prompts:
            return []
        texts = [chat_text(self.tokenizer, prompt) for prompt in prompts]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
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
                detokenize=False,
            )
            for place in range(len(prompts))
        ]
        asked = [TokensPrompt(prompt_token_ids=row) for row in ids]
        drawn = self._llm.generate(asked, how, lora_request=self._adapter)
        return [
            [read_tokens(self.tokenizer, output.token_ids) for output in request.outputs]
            * (sampling.n // distinct)
            for request in drawn
        ]
