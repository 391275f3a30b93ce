"""One call, ``generate(prompts, sampling)``, over a local transformers model, offline vLLM or a server.

The engines draw from the same distribution, count the same tokens and name the same finish reasons, and each
repeats its own draws for equal seeds; the draws of one are not those of another, for their random streams
differ. Greedy completions are the same token by token, but for ties within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from lore_lib.artifacts import project_root, read_parquet, write_parquet
from lore_lib.completion import reader_of
from lore_lib.config import Config
from lore_lib.device import out_of_memory, resolve_device
from lore_lib.errors import EngineError
from lore_lib.parallel import run_parallel
from lore_lib.rng import derive_seed
from lore_lib.sampling.cache import make_room

SAMPLE_COLUMNS = [
    "system", "pair_id", "query_id", "sample", "completion", "label", "parse_kind", "tokens", "finish_reason",
]  # fmt: skip
PART_BATCHES = 16  # of a long job between two files that a kill cannot take back
SLICE_TOKENS = 16  # tokens decoded before the completions that have ended leave the batch


@dataclass(frozen=True)
class Sampling:
    """How to draw completions.

    Attributes:
        n: completions per prompt.
        temperature: 0 is greedy; otherwise the full distribution is sampled (no top-k, no top-p).
        max_completion_tokens: longer completions are cut, with finish reason "length".
        batch_completions: completions decoded at once.
        seed: root of the draws; each batch (``hf``) or completion (``vllm``, ``openai``) has its own stream.
        first: place of the first prompt in a longer list that is sampled part by part, each with streams of
            its own.
    """

    n: int = 8
    temperature: float = 1.0
    max_completion_tokens: int = 168
    batch_completions: int = 256
    seed: int = 17
    first: int = 0

    def seed_of(self, place: int, sample: int) -> int:
        """The seed of one completion of the prompt at ``place``, for engines that take one for each."""
        return derive_seed(self.seed, "completion", self.first + place, sample)


@dataclass(frozen=True)
class Generation:
    """One completion: its text without the end token, its length in tokens, "stop" or "length"."""

    text: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Drawn:
    """One completion as it was drawn.

    Attributes:
        tokens: its tokens, the end token included where it was reached.
        logprobs: of each of them, as the engine drew it; None where the engine does not tell.
    """

    tokens: list[int]
    logprobs: list[float] | None = None


class Engine(Protocol):
    """Who generates."""

    @property
    def name(self) -> str:
        """As in ``sampling.engine``."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Generation]]:
        """n completions for each user turn, in the order of ``prompts``.

        Raises:
            EngineError: a prompt that leaves no room in the context, too little memory, or an engine that
                does not answer.
        """

    def draw(
        self, texts: Sequence[str], sampling: Sampling, share: tuple[int, int] = (0, 1)
    ) -> list[list[Drawn]]:
        """n completions for each text, which is continued as it stands.

        Args:
            texts: in the model's chat template already.
            sampling: how to draw.
            share: (place of this process, processes) among which the work is dealt out. What is drawn for a
                text does not depend on it.

        Returns:
            By text, by completion; texts of another process's share are empty.

        Raises:
            EngineError: as for ``generate``.
        """


@contextmanager
def no_weight_bars() -> Iterator[None]:
    """Reading and writing of weights draw no progress bars inside; a download from the hub still does."""
    before = logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **options | {"disable": True}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def resolve_model(base: str) -> str:
    """A folder under the project root as an absolute path; any other name is left for the hub."""
    folder = project_root() / base
    return str(folder) if folder.is_dir() else base


def load_model(base: str, dtype: str = "float32", device: str = "auto") -> PreTrainedModel:
    """A causal language model in evaluation mode; a folder with an adapter is its base with the adapter on.

    Raises:
        EngineError: no such folder or hub model.
    """
    try:
        with no_weight_bars():
            model = AutoModelForCausalLM.from_pretrained(resolve_model(base), dtype=getattr(torch, dtype))
    except OSError as error:
        raise EngineError(
            f"no model at {base!r}: {error}. Give a local folder or a reachable hub name."
        ) from error
    return model.to(resolve_device(device)).eval()


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


def read_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> Generation:
    """A completion from its tokens, which end with the end token unless they were cut.

    Special tokens but that one stay in the text: a model that writes ``<|im_start|>`` is not well-formed.
    """
    ended = list(tokens[-1:]) == [tokenizer.eos_token_id]
    text = tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=False)
    return Generation(text, len(tokens), "stop" if ended else "length")


def check_context(lengths: Sequence[int], sampling: Sampling, context: int) -> None:
    """Refuse prompts that, with a whole completion, do not fit the model's context.

    Args:
        lengths: of the prompts in tokens.
        sampling: how to draw.
        context: tokens the model was made for.

    Raises:
        EngineError: names the longest prompt and what to change.
    """
    room = context - sampling.max_completion_tokens
    over = [place for place, length in enumerate(lengths) if length > room]
    if over:
        place = max(over, key=lambda i: lengths[i])
        raise EngineError(
            f"{len(over)} of {len(lengths)} prompts leave no room for a completion of "
            f"{sampling.max_completion_tokens} tokens in a context of {context}; the longest is prompt "
            f"{sampling.first + place} with {lengths[place]} tokens. Use a smaller features.budget, or lower "
            "sampling.max_completion_tokens"
        )


def chat_text(tokenizer: PreTrainedTokenizerBase, user: str) -> str:
    """The user's turn in the model's chat template, up to where the assistant begins."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
    )
    return str(text)


class HfEngine:
    """Samples with ``model.generate``.

    Batches hold prompts of like length, a prompt's keys and values are computed once for its n completions,
    and completions that have ended leave the batch every ``SLICE_TOKENS`` tokens: a few that ramble on up to
    the limit do not hold up the rest.

    Args:
        model: a causal LM.
        tokenizer: pads on the left.

    Raises:
        EngineError: the tokenizer knows more tokens than the model.
    """

    name = "hf"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        known = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > known:
            raise EngineError(
                f"the tokenizer knows {len(tokenizer)} tokens and the model {known}: they are of different "
                "models; take both from one folder"
            )

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Generation]]:
        """n completions for each user turn, in the order of ``prompts``."""
        texts = [chat_text(self.tokenizer, prompt) for prompt in prompts]
        if not texts:
            return []
        lengths = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        check_context(lengths, sampling, self.model.config.get_text_config().max_position_embeddings)
        return [
            [read_tokens(self.tokenizer, one.tokens) for one in drawn] for drawn in self.draw(texts, sampling)
        ]

    @torch.no_grad()
    def draw(
        self, texts: Sequence[str], sampling: Sampling, share: tuple[int, int] = (0, 1)
    ) -> list[list[Drawn]]:
        """See :class:`Engine`; whole batches are dealt out, so a share of less than one is idle."""
        if not texts:
            return []
        lengths = [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda i: (lengths[i], i))
        size = max(1, sampling.batch_completions // sampling.n)
        out: list[list[Drawn]] = [[] for _ in texts]
        process, processes = share
        for start in range(process * size, len(order), processes * size):
            rows = order[start : start + size]
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(sampling.seed, "sample", sampling.first + start))
                try:
                    drawn = self._batch([texts[i] for i in rows], sampling)
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    raise EngineError(
                        f"out of memory with {len(rows) * sampling.n} completions at once: lower "
                        "sampling.batch_completions, then sampling.max_completion_tokens"
                    ) from error
            for place, i in enumerate(rows):
                out[i] = [Drawn(tokens) for tokens in drawn[place * sampling.n : (place + 1) * sampling.n]]
        return out

    def _batch(self, texts: list[str], sampling: Sampling) -> list[list[int]]:
        """Tokens of the completions of one batch, those of one text together."""
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = (encoded[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        cache = self.model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        cache.batch_repeat_interleave(sampling.n)
        make_room(cache, SLICE_TOKENS)
        ids, mask = ids.repeat_interleave(sampling.n, 0), mask.repeat_interleave(sampling.n, 0)
        drawn: list[list[int]] = [[] for _ in range(len(ids))]
        going, left = list(range(len(ids))), sampling.max_completion_tokens
        while going and left > 0:
            step = min(SLICE_TOKENS, left) if len(going) > 1 else left  # a lone one holds up nobody
            sequences = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=step,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                synced_gpus=False,  # processes that train together sample each at its own pace
                **_how(sampling.temperature),
            )
            for row, tokens in zip(going, sequences[:, ids.shape[1] :].tolist(), strict=True):
                drawn[row] += self._to_end(tokens)
            kept = [place for place, row in enumerate(going) if not self._ended(drawn[row])]
            going, left = [going[place] for place in kept], left - step
            if going and left > 0:
                rows = torch.tensor(kept, device=ids.device)
                cache.batch_select_indices(rows)
                ids = sequences[rows]
                mask = torch.nn.functional.pad(mask[rows], (0, step), value=1)
        return drawn

    def _ended(self, tokens: list[int]) -> bool:
        return tokens[-1:] == [self.tokenizer.eos_token_id]

    def _to_end(self, tokens: list[int]) -> list[int]:
        """Up to and with the end token: what follows it is padding."""
        end = self.tokenizer.eos_token_id
        return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def _how(temperature: float) -> dict[str, Any]:
    """Overrides what a model ships as its defaults: some penalise repetition, or cut the distribution."""
    plain = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_p": None}
    if temperature == 0:
        return plain | {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return plain | {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def sample_pairs(engine: Engine, prompts: pd.DataFrame, system: str, sampling: Sampling) -> pd.DataFrame:
    """Samples for every pair.

    Args:
        engine: who generates.
        prompts: columns pair_id, query_id, prompt.
        system: name written into the rows; the arm ``label_first`` is read in its own way.
        sampling: how to draw.

    Returns:
        One row per completion, columns ``SAMPLE_COLUMNS``; ``label`` is "" where the completion does not
        parse.
    """
    return sample_rows(prompts, engine.generate(prompts.prompt.tolist(), sampling), system)


def sample_rows(prompts: pd.DataFrame, drawn: Sequence[Sequence[Generation]], system: str) -> pd.DataFrame:
    """The rows of `sample_pairs` from completions that are drawn already, in the order of ``prompts``."""
    rows, reader = [], reader_of(system)
    for pair_id, query_id, generations in zip(prompts.pair_id, prompts.query_id, drawn, strict=True):
        for index, generation in enumerate(generations):
            read = reader(generation.text)
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
        model: folder (of a model, or of an adapter on one) or hub name.
        prompts: Parquet file with pair_id, query_id, prompt.
        out: Parquet file to write; when it is there already it is kept.
        sampling: how to draw.
        dtype, device: as in the model config.
        engine, url, tensor_parallel: as in the sampling config.
    """

    system: str
    model: str
    prompts: Path
    out: Path
    sampling: Sampling
    dtype: str = "float32"
    device: str = "auto"
    engine: str = "hf"
    url: str = ""
    tensor_parallel: int = 1


def sample_job(
    config: Config,
    system: str,
    model: str | Path,
    prompts: Path,
    out: Path,
    n: int | None = None,
    temperature: float | None = None,
) -> SampleJob:
    """A job as `config.sampling` and `config.model` have it, but for ``n`` and ``temperature`` if given."""
    s = config.sampling
    sampling = Sampling(
        n=s.n if n is None else n,
        temperature=s.temperature if temperature is None else temperature,
        max_completion_tokens=s.max_completion_tokens,
        batch_completions=s.batch_completions,
        seed=config.seed,
    )
    return SampleJob(
        system=system,
        model=str(model),
        prompts=prompts,
        out=out,
        sampling=sampling,
        dtype=config.model.dtype,
        device=config.model.device,
        engine=s.engine,
        url=s.url,
        tensor_parallel=s.tensor_parallel,
    )


def open_engine(job: SampleJob) -> Engine:
    """The engine that a job asks for.

    Raises:
        EngineError: no such model, or a server that does not serve it.
    """
    tokenizer = load_tokenizer(job.model)
    if job.engine == "vllm":
        from lore_lib.sampling.vllm_engine import open_vllm

        return open_vllm(job.model, tokenizer, job.dtype, job.tensor_parallel)
    if job.engine == "openai":
        from lore_lib.sampling.server_engine import ServerEngine

        return ServerEngine(job.system, job.model, job.url, tokenizer)
    return HfEngine(load_model(job.model, job.dtype, job.device), tokenizer)


def run_sample_job(job: SampleJob) -> Path:
    """Do one job; returns ``job.out``. A finished file is not made again, nor are the parts of one.

    Every ``PART_BATCHES`` batches are written beside it as they are done, so that a kill loses no more.
    """
    if job.out.exists():
        return job.out
    prompts = read_parquet(job.prompts)
    engine: Engine | None = None
    parts = []
    for first in _starts(job, len(prompts)):
        part = _part_file(job, first)
        if not part.exists():
            engine = engine or open_engine(job)
            _write_part(job, first, prompts, engine)
        parts.append(part)
    write_parquet(pd.concat(map(read_parquet, parts), ignore_index=True), job.out)
    for part in parts:
        part.unlink()
    return job.out


def run_sample_jobs(jobs: Sequence[SampleJob], workers: int, label: str = "") -> list[Path]:
    """Do jobs in worker processes; a long one is shared among them, part by part.

    The parts of a job do not depend on the workers, and each draws from streams of its own: the samples are
    the same for any number of them. vLLM and a server, which batch for themselves, do a whole job at a time.

    Args:
        jobs: what to sample; the longest first fills the workers best.
        workers: processes at a time.
        label: of the progress bar.

    Returns:
        ``job.out`` of each job.
    """
    pieces: list[tuple[SampleJob, int | None]] = []
    for job in (job for job in jobs if not job.out.exists()):
        shared = job.engine == "hf"
        starts = _starts(job, len(read_parquet(job.prompts))) if shared else [None]
        pieces += [(job, first) for first in starts]
    run_parallel(_run_piece, pieces, workers, label)
    return [run_sample_job(job) for job in jobs]


def _run_piece(piece: tuple[SampleJob, int | None]) -> None:
    job, first = piece
    if first is None:
        run_sample_job(job)
    elif not _part_file(job, first).exists():
        _write_part(job, first, read_parquet(job.prompts), open_engine(job))


def _part_pairs(sampling: Sampling) -> int:
    return PART_BATCHES * max(1, sampling.batch_completions // sampling.n)


def _starts(job: SampleJob, pairs: int) -> range:
    """Where the parts of a job begin; no pairs make one part without rows."""
    return range(0, max(pairs, 1), _part_pairs(job.sampling))


def _part_file(job: SampleJob, first: int) -> Path:
    return job.out.with_suffix(f".{first:08d}.parquet")


def _write_part(job: SampleJob, first: int, prompts: pd.DataFrame, engine: Engine) -> None:
    sampling = replace(job.sampling, first=job.sampling.first + first)
    rows = prompts.iloc[first : first + _part_pairs(job.sampling)]
    write_parquet(sample_pairs(engine, rows, job.system, sampling), _part_file(job, first))
