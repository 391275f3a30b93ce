"""The paper's first experiment: which parts of an item, and how long a prompt, make a better judge.

Prompts form a ladder, each rung telling more of the item than the one below. The same base is tuned on labels
alone, once per rung and for a short while, and then judges dev pairs from prompts of that rung. There are no
chains of thought: the rungs differ in evidence and in nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.completion import render_answer
from lore_lib.config import Config
from lore_lib.errors import DataError
from lore_lib.features.build import build_prompts
from lore_lib.features.template import Template
from lore_lib.parallel import run_parallel
from lore_lib.rng import generator
from lore_lib.sampling.engine import SampleJob, Sampling, chat_text, run_sample_job
from lore_lib.sampling.intervals import cluster_bootstrap, paired_difference
from lore_lib.sampling.pass_at_k import expected_chance_pass_at_k, summarise
from lore_lib.training.sft import SftJob, train_sft

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_PAIRS = 16
"""Pairs per optimiser step: with a few hundred pairs, steps are what is short."""

ANSWER_TOKENS = 32
"""Room for a label with its mismatch."""

BATCH_COMPLETIONS = 64
"""Completions decoded at once."""

TOLD = ("visual", "knowledge")
"""Kinds of pair whose evidence a rung brings in (the picture, the selling points): scored apart as well."""


class Rung(NamedTuple):
    """One prompt of the ladder.

    Attributes:
        name: what it adds to the rung below and, in brackets, the budget whose sections it completes.
        budget: the smallest one that holds its sections.
        sections: all that it tells of the item.
    """

    name: str
    budget: str
    sections: tuple[str, ...]


def ladder(template: Template) -> list[Rung]:
    """The rungs of a template: what ``short`` tells, then CPV, SKU, picture, then the rest of the budgets.

    >>> from lore_lib.features.template import load_template
    >>> [rung.name for rung in ladder(load_template("nano"))]
    ['title, price (short)', '+ cpv', '+ sku', '+ picture (mid)', '+ shop, selling_points (full)']
    """
    budgets: dict[str, tuple[str, ...]] = {name: b.sections for name, b in template.budgets.items()}
    rungs: list[Rung] = []
    told: tuple[str, ...] = ()
    for step in (budgets["short"], ("cpv",), ("sku",), ("picture",), budgets["mid"], budgets["full"]):
        if added := tuple(section for section in step if section not in told):
            told += added
            budget = next((name for name in ("short", "mid") if set(told) <= set(budgets[name])), "full")
            whole = f" ({budget})" if set(told) == set(budgets[budget]) else ""
            rungs.append(Rung(f"{'+ ' if rungs else ''}{', '.join(added)}{whole}", budget, told))
    return rungs


def ladder_prompts(
    tables: Mapping[str, pd.DataFrame],
    captions: pd.Series,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[Rung, pd.DataFrame]:
    """The prompts of all pairs on every rung, as :func:`build_prompts` writes them.

    Each frame has one more column, ``tokens``: the length of the prompt, chat template included.
    """
    built = {}
    for rung in ladder(template):
        frame = build_prompts(
            tables, captions, rung.budget, rung.sections, template=template, tokenizer=tokenizer
        )
        turns = [chat_text(tokenizer, prompt) for prompt in frame["prompt"]]
        tokens = [len(ids) for ids in tokenizer(turns, add_special_tokens=False)["input_ids"]]
        built[rung] = frame.assign(tokens=tokens)
    return built


@dataclass(frozen=True)
class RungJob:
    """Tune one model and let it judge; picklable, for :func:`lore_lib.parallel.run_parallel`."""

    tune: SftJob
    judge: SampleJob


def rung_jobs(
    config: Config, built: Mapping[Rung, pd.DataFrame], pairs: pd.DataFrame, folder: Path
) -> list[RungJob]:
    """One job per rung; all learn the labels of the same train pairs and judge all dev pairs.

    Args:
        config: sizes (``features.ablation_*``), model and seed.
        built: from :func:`ladder_prompts`.
        pairs: the table, for the dimension that failed.
        folder: where the jobs' files go.

    Raises:
        DataError: no train or no dev pairs.
    """
    sizes = config.features
    by_split = {split: pairs[pairs["split"] == split] for split in ("train", "dev")}
    if empty := [split for split, part in by_split.items() if part.empty]:
        raise DataError(f"pairs: none in split {' and '.join(empty)}; the ladder tunes on train, judges dev")
    train, rng = by_split["train"], generator(config.seed, "ablation", "train")
    taught = train.sample(min(sizes.ablation_pairs, len(train)), random_state=rng)
    answers = pd.Series(map(render_answer, taught["label"], taught["mismatch"]), index=taught["pair_id"])
    jobs = []
    for place, (rung, frame) in enumerate(built.items()):
        home = folder / f"rung-{place}"
        rows = frame.set_index("pair_id").loc[answers.index].assign(completion=answers).reset_index()
        asked = frame.loc[frame["split"] == "dev", ["pair_id", "query_id", "prompt"]]
        tune = SftJob(
            arm=rung.name,
            base=config.model.base,
            rows=write_parquet(rows[["pair_id", "prompt", "completion"]], home / "train.parquet"),
            out=home / "model",
            epochs=sizes.ablation_epochs,
            learning_rate=sizes.ablation_learning_rate,
            batch_pairs=BATCH_PAIRS,
            warmup_share=0.1,
            max_sequence_tokens=int(frame["tokens"].max()) + ANSWER_TOKENS,
            checkpoint_steps=100,
            lora_rank=config.model.lora_rank,
            seed=config.seed,
            dtype=config.model.dtype,
            device=config.model.device,
        )
        judge = SampleJob(
            system=rung.name,
            model=str(tune.out),
            prompts=write_parquet(asked, home / "dev.parquet"),
            out=home / "samples.parquet",
            sampling=Sampling(sizes.ablation_samples, 1.0, ANSWER_TOKENS, BATCH_COMPLETIONS, config.seed),
            dtype=config.model.dtype,
            device=config.model.device,
        )
        jobs.append(RungJob(tune, judge))
    return jobs


def judge_ladder(
    config: Config, built: Mapping[Rung, pd.DataFrame], pairs: pd.DataFrame, folder: Path
) -> pd.DataFrame:
    """Samples of every rung over the dev pairs; does the :func:`rung_jobs`, ``runtime.workers`` at once."""
    jobs = rung_jobs(config, built, pairs, folder)
    drawn = run_parallel(run_rung, jobs, config.runtime.workers, "rungs")
    return pd.concat(map(read_parquet, drawn), ignore_index=True)


def run_rung(job: RungJob) -> Path:
    """Do one job and return the file of its samples; finished samples are kept, the model is not."""
    if not job.judge.out.exists():
        train_sft(job.tune)
        run_sample_job(job.judge)
    shutil.rmtree(job.tune.out, ignore_errors=True)
    return job.judge.out


def ladder_table(
    samples: pd.DataFrame, gold: pd.DataFrame, rng: np.random.Generator, resamples: int = 1000
) -> pd.DataFrame:
    """pass@1 of every rung, and its gain over the rung below on the same pairs.

    Args:
        samples: rows of all rungs, in the order of the ladder.
        gold: pair_id, query_id, label, kind of the pairs that were judged.
        rng: source of the resamples.
        resamples: bootstrap resamples behind each interval, of queries.

    Returns:
        Columns system (the rung), pairs ("all", or a kind of ``TOLD`` that occurs), value, low, high, n
        (pairs), gain, gain_low, gain_high (NaN on the lowest rung), parse_rate.
    """
    groups = {"all": gold} | {kind: part for kind in TOLD if len(part := gold[gold["kind"] == kind])}
    rows = []
    for group, part in groups.items():
        below = None
        for system, drawn in samples[samples["pair_id"].isin(part["pair_id"])].groupby("system", sort=False):
            scored = summarise(drawn, part, k=1)
            right, queries = scored["pass_at_1"], scored["query_id"]
            low, high = cluster_bootstrap(right, queries, resamples, rng)
            gain = (np.nan,) * 3
            if below is not None:
                gain = paired_difference(right, below, queries, resamples, rng)
            below = right
            rows.append(
                (system, group, right.mean(), low, high, len(scored), *gain, scored["parse_rate"].mean())
            )
    names = ["system", "pairs", "value", "low", "high", "n", "gain", "gain_low", "gain_high", "parse_rate"]
    return pd.DataFrame(rows, columns=names)


def without_model(pairs: pd.DataFrame) -> dict[str, float]:
    """pass@1 on dev pairs of judges that need no model: uniform guessing, and the usual label of train."""
    usual = str(pairs.loc[pairs["split"] == "train", "label"].value_counts().sort_index().idxmax())
    hits = pairs.loc[pairs["split"] == "dev", "label"] == usual
    return {"uniform guessing": expected_chance_pass_at_k(1), f"always {usual}": float(hits.mean())}
