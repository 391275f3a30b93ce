"""Whatever answers pairs, behind one interface: a rule of thumb, a classifier, a language model, an endpoint.

:func:`answer_all` lets each of them answer a benchmark, block by block. A finished block is a file and is
not asked for again, so a killed evaluation goes on where it stopped and a new system costs only its own
answers.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm.auto import tqdm

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.completion import parse, render
from lore_lib.config import Config, FeaturesConfig
from lore_lib.cot.chat import ChatModel, Reply, Request
from lore_lib.cot.replies import ReplyCache, complete_cached
from lore_lib.errors import DataError
from lore_lib.features.build import build_prompts
from lore_lib.features.template import load_template
from lore_lib.parallel import run_parallel
from lore_lib.rair.baselines import Baseline
from lore_lib.vertical.contract import Tables
from lore_lib.vertical.schema import DIMENSIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lore_lib.sampling.engine import HfEngine, Sampling

ANSWER_COLUMNS = ("pair_id", "label", "parse_kind", "completion", "tokens")
"""What a system gives per pair; label "" and a parse kind that is not "ok" for an answer that could not be
read."""

ASKED_COLUMNS = ("pair_id", "query_id", "query", "item_text", "prompt")
"""What a system is asked with. The gold label is not among them."""

INSTRUCTED = "instruction"
"""A further column, the prompt in a template that explains the task: for models that were never tuned on
it."""

BLOCK_PAIRS = 2000
"""Pairs that are answered, and kept, at a time."""


class System(Protocol):
    """Answers pairs."""

    @property
    def name(self) -> str:
        """As in the table."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its answers beside the pairs; JSON values, no secrets. Cached answers go by it."""

    @property
    def alone(self) -> bool:
        """Whether it computes long enough to deserve a process of its own; it must then be picklable."""

    def answer(self, asked: pd.DataFrame) -> pd.DataFrame:
        """One row of ``ANSWER_COLUMNS`` per row of ``ASKED_COLUMNS``, in order."""


@dataclass(frozen=True)
class Classifier:
    """A baseline, fitted when it is first asked."""

    baseline: Baseline
    train: pd.DataFrame = field(repr=False)
    alone = False

    @property
    def name(self) -> str:
        """That of the baseline."""
        return self.baseline.name

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The baseline, what it was made with, and a hash of what it learns from."""
        learnt = pd.util.hash_pandas_object(self.train[["query", "item_text", "label"]], index=False)
        digest = hashlib.sha256(learnt.to_numpy().tobytes()).hexdigest()
        return {"classifier": self.name, **self.baseline.settings, "train": digest}

    @functools.cached_property
    def _fitted(self) -> Baseline:
        return self.baseline.fit(self.train)

    def answer(self, asked: pd.DataFrame) -> pd.DataFrame:
        """Its labels, which can always be read."""
        labels = self._fitted.predict(asked)
        return asked[["pair_id"]].assign(label=labels, parse_kind="ok", completion="", tokens=0)


@dataclass(frozen=True)
class LanguageModel:
    """A local causal language model, one completion per pair.

    Attributes:
        name: as in the table.
        model: folder or hub name.
        weights: what tells this model from another in the same folder, such as a manifest's hash.
        sampling: how to draw.
        dtype, device: as in the model config.
    """

    name: str
    model: str
    weights: str
    sampling: Sampling
    dtype: str = "float32"
    device: str = "auto"
    alone = True

    @property
    def identity(self) -> dict[str, Any]:
        """Model, weights and draw; not how many are decoded at once."""
        drawn = {name: value for name, value in asdict(self.sampling).items() if name != "batch_completions"}
        return {"model": self.model, "weights": self.weights, "dtype": self.dtype, **drawn}

    @functools.cached_property
    def _engine(self) -> HfEngine:
        from lore_lib.sampling.engine import HfEngine, load_model, load_tokenizer

        return HfEngine(load_model(self.model, self.dtype, self.device), load_tokenizer(self.model))

    def answer(self, asked: pd.DataFrame) -> pd.DataFrame:
        """The first completion of each pair, read by the one grammar."""
        from lore_lib.sampling.engine import sample_pairs

        drawn = sample_pairs(self._engine, asked, self.name, self.sampling)
        return drawn.loc[drawn["sample"] == 0, list(ANSWER_COLUMNS)].reset_index(drop=True)


class _Verdict(BaseModel):
    """The JSON object that an endpoint answers with."""

    model_config = ConfigDict(extra="forbid", strict=True)
    why: str
    label: Literal["L1", "L2", "L3", "L4"]
    mismatch: str


INSTRUCTION = (
    "Answer with one JSON object and nothing else, in place of the form above: "
    '{"why": your reasoning, "label": "L1", "L2", "L3" or "L4", "mismatch": for L2 by a failed demand the '
    'name of its dimension, else ""}'
)


class ChatJudge:
    """Any chat model, such as one behind an OpenAI-compatible endpoint
    (:class:`lore_lib.cot.endpoint.OpenAIChat`).

    It is asked with the column ``INSTRUCTED``. A call that does not get through stops the evaluation and is
    asked again next time; a reply that cannot be read, or was cut or filtered, is a wrong answer and counted
    under its reason.

    Args:
        name: as in the table.
        model: answers.
        cache: keeps each good reply.
    """

    alone = False

    def __init__(self, name: str, model: ChatModel, cache: ReplyCache | None = None) -> None:
        self.name, self._model, self._cache = name, model, cache

    @property
    def identity(self) -> dict[str, Any]:
        """The model and the instruction."""
        return {"engine": self._model.name, "instruction": INSTRUCTION, **self._model.identity}

    def answer(self, asked: pd.DataFrame) -> pd.DataFrame:
        """One reply per pair.

        Raises:
            EngineError: calls did not get through; those that did are in the cache.
        """
        if INSTRUCTED not in asked:
            raise DataError(
                f"{self.name} needs the column {INSTRUCTED!r}, which explains the task: see asked_pairs"
            )
        schema = _Verdict.model_json_schema()
        turns = [f"{prompt}\n\n{INSTRUCTION}" for prompt in asked[INSTRUCTED]]
        requests = [Request(({"role": "user", "content": turn},), schema) for turn in turns]
        replies = complete_cached(self._model, requests, self._cache)
        rows = [
            (pair_id, *self._read(reply)) for pair_id, reply in zip(asked["pair_id"], replies, strict=True)
        ]
        return pd.DataFrame(rows, columns=list(ANSWER_COLUMNS))

    def _read(self, reply: Reply) -> tuple[str, str, str, int]:
        if reply.failure:
            return "", reply.failure, reply.text, reply.completion_tokens
        try:
            said = _Verdict.model_validate_json(reply.text.strip())
        except ValidationError:
            return "", "malformed", reply.text, reply.completion_tokens
        title = said.mismatch if said.label == "L2" else ""
        known = {name: key for key, name in DIMENSIONS.items()} | {key: key for key in DIMENSIONS} | {"": ""}
        if title not in known:
            return "", "unknown_mismatch", reply.text, reply.completion_tokens
        written = render([said.why.replace("<", "(").replace(">", ")")], said.label, known[title])
        return said.label, parse(written).kind, written, reply.completion_tokens


def asked_pairs(
    tables: Tables,
    captions: pd.Series,
    features: FeaturesConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    rules: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """What systems are asked for each pair: ``ASKED_COLUMNS`` and ``INSTRUCTED``, in the order of ``pairs``.

    ``prompt`` is for the run's own language models, in the template of the config; ``instruction`` for
    models that need the task explained (template ``en`` where the config's explains nothing); ``item_text``
    for judges that read no instructions: the same sections of the item, bare.
    """

    seen = [text if isinstance(text, str) and text else None for text in captions]  # a table gives NaN back
    captions = pd.Series(seen, index=captions.index, dtype=object)
    how: dict[str, Any] = {"tokenizer": tokenizer, "rules": rules}
    told = build_prompts(tables, captions, features.budget, template=load_template(features.template), **how)
    explained = told
    if features.template == "nano":  # the other model's tokens are not this tokenizer's: no budget in tokens
        explained = build_prompts(
            tables, captions, features.budget, template=load_template("en"), rules=rules
        )
    bare = build_prompts(tables, captions, features.budget)
    texts = tables["queries"].set_index("query_id")["query"]
    rows = told.assign(query=told["query_id"].map(texts), item_text=bare["prompt"].str.partition("\n")[2])
    return rows.assign(instruction=explained["prompt"])[[*ASKED_COLUMNS, INSTRUCTED]]


def told_pairs(prompts: pd.DataFrame, queries: pd.DataFrame) -> pd.DataFrame:
    """The pairs of a run as systems are asked them, gold labels and all, from its tables of prompts and
    queries."""
    rows = prompts.merge(queries[["query_id", "query"]], on="query_id", validate="m:1")
    return rows.assign(item_text=rows["bare"].str.partition("\n")[2])  # all lines after the query's


def language_model(config: Config, name: str, model: str | Path) -> LanguageModel:
    """One completion per pair, greedy or sampled as ``rair.greedy`` has it, by the sizes of the config."""
    from lore_lib.sampling.engine import Sampling, resolve_model

    drawn = config.sampling
    sampling = Sampling(
        n=1,
        temperature=0.0 if config.rair.greedy else drawn.temperature,
        max_completion_tokens=drawn.max_completion_tokens,
        batch_completions=drawn.batch_completions,
        seed=config.seed,
    )
    files = sorted(Path(resolve_model(str(model))).glob("*.safetensors"))
    weights = " ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
    return LanguageModel(name, str(model), weights, sampling, config.model.dtype, config.model.device)


def chain_models(config: Config, sft: Path, grpo: Path) -> tuple[list[LanguageModel], int]:
    """The models of a run, in the order of the chain: base, SFT arms, and the GRPO seed with the best dev
    probe.

    Picked on the benchmark's own pairs, that seed's score would be a maximum over seeds and not an estimate.

    Args:
        config: of the run.
        sft: folder with a model per arm.
        grpo: folder with one run per seed.

    Returns:
        The models, the last named "grpo", and the seed.
    """
    from lore_lib.training.grpo_rows import run_rows

    probes = {seed: run_rows(grpo / f"seed-{seed}")[1].pass_at_1.max() for seed in config.grpo.seeds}
    seed = max(probes, key=probes.__getitem__)
    folders = {"zero-shot base": config.model.base} | {arm: sft / arm for arm in config.cot.arms}
    folders |= {"grpo": grpo / f"seed-{seed}" / "best"}
    return [language_model(config, name, folder) for name, folder in folders.items()], seed


def endpoint_judge(config: Config, cache: Path) -> ChatJudge:
    """The judge behind ``rair.judge_url``; its good replies are kept in the file ``cache``."""
    from lore_lib.cot.chat import Draw
    from lore_lib.cot.endpoint import OpenAIChat

    named, limit = config.rair.judge_model, config.sampling.max_completion_tokens
    chat = OpenAIChat(named, config.rair.judge_url, Draw(max_tokens=max(limit, 1024), seed=config.seed))
    return ChatJudge(named, chat, ReplyCache(cache))


@dataclass(frozen=True)
class _Job:
    """One system over all blocks; picklable."""

    system: System
    asked: Path
    folder: Path
    benchmark: str
    block_pairs: int


def answer_all(
    systems: Sequence[System],
    asked: pd.DataFrame,
    folder: Path,
    benchmark: str,
    workers: int,
    block_pairs: int = BLOCK_PAIRS,
) -> pd.DataFrame:
    """The answers of every system to the same pairs.

    Args:
        systems: of different names.
        asked: columns ``ASKED_COLUMNS``.
        folder: keeps the answers, one file per system and block. A file is used again only for the same
            system, pairs and benchmark.
        benchmark: reference written beside each answer.
        workers: processes at once for systems that compute alone, where there are several.
        block_pairs: pairs of a block.

    Returns:
        system, benchmark, and ``ANSWER_COLUMNS``; systems in their order, pairs in that of ``asked``.

    Raises:
        DataError: two systems of one name, columns missing, or a system that answers other pairs than asked.
    """
    names = [system.name for system in systems]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"two systems are named {', '.join(sorted(twice))}; rename one")
    if missing := [column for column in ASKED_COLUMNS if column not in asked]:
        raise DataError(f"the pairs lack the columns {', '.join(missing)}; systems read all of them")
    columns = [column for column in (*ASKED_COLUMNS, INSTRUCTED) if column in asked]
    path = write_parquet(asked[columns], folder / "asked.parquet")
    jobs = {s.name: _Job(s, path, folder, benchmark, block_pairs) for s in systems}
    long = [job for job in jobs.values() if job.system.alone]
    here = [job for job in jobs.values() if not job.system.alone] + (long if len(long) == 1 else [])
    done = {job.system.name: run_system(job) for job in here}
    if len(long) > 1:
        found = run_parallel(run_system, long, workers, "judging")
        done |= zip((job.system.name for job in long), found, strict=True)
    return pd.concat([read_parquet(path) for name in names for path in done[name]], ignore_index=True)


def run_system(job: _Job) -> list[Path]:
    """Answer what is not answered yet; returns the files of all blocks."""
    asked = read_parquet(job.asked)
    files = []
    blocks = list(_blocks(asked, job.block_pairs))
    for block in tqdm(blocks, desc=job.system.name, disable=len(blocks) == 1):
        path = job.folder / f"{_file_name(job, block)}.parquet"
        if not path.exists():
            answers = job.system.answer(block)[list(ANSWER_COLUMNS)]
            if answers["pair_id"].tolist() != block["pair_id"].tolist():
                raise DataError(f"{job.system.name} answered other pairs than the {len(block)} it was asked")
            write_parquet(answers.assign(system=job.system.name, benchmark=job.benchmark), path)
        files.append(path)
    return files


def _blocks(asked: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    for start in range(0, max(len(asked), 1), size):
        yield asked.iloc[start : start + size].reset_index(drop=True)


def _file_name(job: _Job, block: pd.DataFrame) -> str:
    """Of one block's answers: system, and a hash of all that decides them."""
    digest = hashlib.sha256(json.dumps([job.benchmark, job.system.identity], sort_keys=True).encode())
    digest.update(pd.util.hash_pandas_object(block, index=False).to_numpy().tobytes())
    plain = "".join(c if c.isalnum() else "-" for c in job.system.name)
    return f"{plain}-{digest.hexdigest()[:16]}"
