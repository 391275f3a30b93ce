"""One call, ``generate(prompts, n, ...)``, over a local transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lore_lib.artifacts import project_root, read_parquet, write_parquet
from lore_lib.completion import parse
from lore_lib.errors import EngineError
from lore_lib.rng import derive_seed

SAMPLE_COLUMNS = [
    "system", "pair_id", "query_id", "sample", "completion", "label", "parse_kind", "tokens", "finish_reason",
]  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How to draw completions.

    Attributes:
        n: completions per prompt.
        temperature: 0 is greedy; otherwise the full distribution is sampled (no top-k, no top-p).
        max_completion_tokens: longer completions are cut, with finish reason "length".
        batch_completions: completions decoded at once.
        seed: root of the draws; each batch has its own stream.
    """

    n: int = 8
    temperature: float = 1.0
    max_completion_tokens: int = 112
    batch_completions: int = 256
    seed: int = 17


@dataclass(frozen=True)
class Generation:
    """One completion: its text without the end token, its length in tokens, "stop" or "length"."""

    text: str
    tokens: int
    finish_reason: str


def resolve_model(base: str) -> str:
    """A folder under the project root as an absolute path; any other name is left for the hub."""
    folder = project_root() / base
    return str(folder) if folder.is_dir() else base


def load_model(base: str, dtype: str = "float32", device: str = "auto") -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Raises:
        EngineError: no such folder or hub model.
    """
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        model = AutoModelForCausalLM.from_pretrained(resolve_model(base), dtype=getattr(torch, dtype))
    except OSError as error:
        raise EngineError(
            f"no model at {base!r}: {error}. Give a local folder or a reachable hub name."
        ) from error
    return model.to(target).eval()


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, set to pad on the left for sampling.

    Raises:
        EngineError: it cannot be loaded, or has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(base))
    except OSError as error:
        raise EngineError(f"no tokenizer at {base!r}: {error}") from error
    if tokenizer.chat_template is None:
        raise EngineError(f"the tokenizer of {base!r} has no chat template; take an instruction-tuned model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def chat_text(tokenizer: PreTrainedTokenizerBase, user: str) -> str:
    """The user's turn in the model's chat template, up to where the assistant begins."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
    )
    return str(text)


class HfEngine:
    """Samples with ``model.generate``: batches of like length, a prompt's keys and values computed once.

    Args:
        model: a causal LM.
        tokenizer: pads on the left.
    """

    name = "hf"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Generation]]:
        """n completions for each user turn, in the order of ``prompts``."""
        if not prompts:
            return []
        texts = [chat_text(self.tokenizer, prompt) for prompt in prompts]
        lengths = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda i: (lengths[i], i))
        size = max(1, sampling.batch_completions // sampling.n)
        out: list[list[Generation]] = [[] for _ in texts]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            batch = self._batch(
                [texts[i] for i in rows], sampling, derive_seed(sampling.seed, "sample", start)
            )
            for i, generations in zip(rows, batch, strict=True):
                out[i] = generations
        return out

    def _batch(self, texts: list[str], sampling: Sampling, seed: int) -> list[list[Generation]]:
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = (
            encoded["input_ids"].to(self.model.device),
            encoded["attention_mask"].to(self.model.device),
        )
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        prefix = self.model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        prefix.batch_repeat_interleave(sampling.n)
        draw = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sequences = self.model.generate(
                input_ids=ids.repeat_interleave(sampling.n, 0),
                attention_mask=mask.repeat_interleave(sampling.n, 0),
                past_key_values=prefix,
                max_new_tokens=sampling.max_completion_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                **(draw if sampling.temperature > 0 else {"do_sample": False}),
            )
        rows = [self._read(row) for row in sequences[:, ids.shape[1] :].tolist()]
        return [rows[i : i + sampling.n] for i in range(0, len(rows), sampling.n)]

    def _read(self, tokens: list[int]) -> Generation:
        end = self.tokenizer.eos_token_id
        stopped = end in tokens
        kept = tokens[: tokens.index(end)] if stopped else tokens
        text = self.tokenizer.decode(kept, skip_special_tokens=False)
        return Generation(text, len(kept) + stopped, "stop" if stopped else "length")


def sample_pairs(engine: HfEngine, prompts: pd.DataFrame, system: str, sampling: Sampling) -> pd.DataFrame:
    """Samples for every pair.

    Args:
        engine: who generates.
        prompts: columns pair_id, query_id, prompt.
        system: name written into the rows.
        sampling: how to draw.

    Returns:
        One row per completion, columns ``SAMPLE_COLUMNS``; ``label`` is "" where the completion does not
        parse.
    """
    drawn = engine.generate(prompts.prompt.tolist(), sampling)
    rows = []
    for pair_id, query_id, generations in zip(prompts.pair_id, prompts.query_id, drawn, strict=True):
        for index, generation in enumerate(generations):
            read = parse(generation.text)
            rows.append(
                (system, pair_id, query_id, index, generation.text, read.label, read.kind, generation.tokens,
                 generation.finish_reason)
            )  # fmt: skip
    return pd.DataFrame(rows, columns=SAMPLE_COLUMNS)


@dataclass(frozen=True)
class SampleJob:
    """Sample one system over one table of prompts; picklable, for :func:`lore_lib.parallel.run_parallel`.

    Attributes:
        system: name of the system.
        model: folder or hub name.
        prompts: Parquet file with pair_id, query_id, prompt.
        out: Parquet file to write; when it is there already it is kept.
        sampling: how to draw.
        dtype, device: as in the model config.
    """

    system: str
    model: str
    prompts: Path
    out: Path
    sampling: Sampling
    dtype: str = "float32"
    device: str = "auto"


def run_sample_job(job: SampleJob) -> Path:
    """Do one job; returns ``job.out``. A finished file is not made again."""
    if not job.out.exists():
        engine = HfEngine(load_model(job.model, job.dtype, job.device), load_tokenizer(job.model))
        write_parquet(sample_pairs(engine, read_parquet(job.prompts), job.system, job.sampling), job.out)
    return job.out
