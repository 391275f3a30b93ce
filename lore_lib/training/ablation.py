"""The paper's first experiment: which parts of an item, and how long a prompt, make a better judge.

Prompts form a ladder, each rung telling more of the item than the one below. A base is tuned on bare labels,
every train pair once on every rung, and then judges dev pairs from the prompts of each rung. So one model
stands on all rungs: they differ in evidence and in nothing else, and what is learned of a label on one serves
the others. A tuning per rung would need as many labels for each to show the same.

Beside it climbs a perfect reader, who learns nothing: whether a line holds evidence is one question, whether
a model learns from labels to use it is another.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.completion import render_answer
from lore_lib.config import Config
from lore_lib.cot.teacher import SymbolicTeacher, read_caption
from lore_lib.errors import DataError
from lore_lib.features.build import build_prompts
from lore_lib.features.template import Template
from lore_lib.parallel import run_parallel
from lore_lib.rng import derive_seed, generator
from lore_lib.sampling.engine import SampleJob, Sampling, chat_text, run_sample_job
from lore_lib.sampling.intervals import cluster_bootstrap, paired_difference
from lore_lib.sampling.pass_at_k import PARSED, expected_chance_pass_at_k, summarise
from lore_lib.training.sft import SftJob, train_sft
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.rules import judge, verdict
from lore_lib.vertical.schema import load_demands

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
class LadderJob:
    """Tune one model and let it judge from every rung; picklable, for
    :func:`lore_lib.parallel.run_parallel`."""

    tune: SftJob
    judges: tuple[SampleJob, ...]


def ladder_jobs(
    config: Config, built: Mapping[Rung, pd.DataFrame], pairs: pd.DataFrame, folder: Path
) -> list[LadderJob]:
    """One job per training; all learn the labels of the same train pairs and judge all dev pairs.

    Args:
        config: sizes (``features.ablation_*``), model and seed.
        built: from :func:`ladder_prompts`.
        pairs: the table, for the dimension that failed.
        folder: where the jobs' files go.

    Raises:
        DataError: no train or no dev pairs.
    """
    sizes, model = config.features, config.model
    by_split = {split: pairs[pairs["split"] == split] for split in ("train", "dev")}
    if empty := [split for split, part in by_split.items() if part.empty]:
        raise DataError(f"pairs: none in split {' and '.join(empty)}; the ladder tunes on train, judges dev")
    train, rng = by_split["train"], generator(config.seed, "ablation", "train")
    taught = train.sample(min(sizes.ablation_pairs, len(train)), random_state=rng)
    rows = write_parquet(_taught_rows(built, taught), folder / "train.parquet")
    asked = []
    for place, frame in enumerate(built.values()):
        dev = frame.loc[frame["split"] == "dev", ["pair_id", "query_id", "prompt"]]
        asked.append(write_parquet(dev, folder / f"dev-{place}.parquet"))
    longest = max(int(frame["tokens"].max()) for frame in built.values())
    jobs = []
    for training in range(sizes.ablation_trainings):
        home, seed = folder / f"training-{training}", derive_seed(config.seed, "ablation", training)
        tune = SftJob(
            arm=f"ladder {training}",
            base=model.base,
            rows=rows,
            out=home / "model",
            epochs=sizes.ablation_epochs,
            learning_rate=sizes.ablation_learning_rate,
            batch_pairs=BATCH_PAIRS,
            warmup_share=0.05,
            max_sequence_tokens=longest + ANSWER_TOKENS,
            checkpoint_steps=100,
            lora_rank=model.lora_rank,
            seed=seed,
            dtype=model.dtype,
            device=model.device,
        )
        sampling = Sampling(sizes.ablation_samples, 1.0, ANSWER_TOKENS, BATCH_COMPLETIONS, seed)
        judges = tuple(
            SampleJob(
                system=rung.name,
                model=str(tune.out),
                prompts=asked[place],
                out=home / f"samples-{place}.parquet",
                sampling=sampling,
                dtype=model.dtype,
                device=model.device,
            )
            for place, rung in enumerate(built)
        )
        jobs.append(LadderJob(tune, judges))
    return jobs


def _taught_rows(built: Mapping[Rung, pd.DataFrame], taught: pd.DataFrame) -> pd.DataFrame:
    """Every taught pair on every rung: pair_id, prompt, completion."""
    answers = pd.Series(map(render_answer, taught["label"], taught["mismatch"]), index=taught["pair_id"])
    rungs = [
        frame.set_index("pair_id").loc[answers.index].assign(completion=answers).reset_index()
        for frame in built.values()
    ]
    return pd.concat(rungs, ignore_index=True)[["pair_id", "prompt", "completion"]]


def judge_ladder(
    config: Config, built: Mapping[Rung, pd.DataFrame], pairs: pd.DataFrame, folder: Path
) -> pd.DataFrame:
    """Samples of every rung over the dev pairs; does the :func:`ladder_jobs`, ``runtime.workers`` at once.

    The rows of a rung hold those of all trainings, told apart by the column ``training``; their sample
    numbers go on from one to the next.
    """
    jobs = ladder_jobs(config, built, pairs, folder)
    drawn = run_parallel(climb, jobs, config.runtime.workers, "trainings")
    parts = [
        part.assign(training=training, sample=part["sample"] + training * config.features.ablation_samples)
        for training, files in enumerate(drawn)
        for part in map(read_parquet, files)
    ]
    return pd.concat(parts, ignore_index=True)


def climb(job: LadderJob) -> list[Path]:
    """Do one job; the file of samples of each rung. Finished samples are kept, the model is not."""
    if not all(judge.out.exists() for judge in job.judges):
        train_sft(job.tune)
    drawn = [run_sample_job(judge) for judge in job.judges]
    shutil.rmtree(job.tune.out, ignore_errors=True)
    return drawn


class PerfectReader:
    """Understands every query, knows every rule, and reads of an item what a rung tells: its evidence.

    That is the title's category and the price, and the CPV and the picture where the rung holds them. What is
    not stated counts as near.

    Args:
        vertical: vocabularies and rules.
        tables: ``pairs``, ``items``, and ``queries`` with their ``demands``.
        captions: what is seen on each item's picture, by ``item_id``.

    Raises:
        DataError: no dev pairs.
    """

    def __init__(self, vertical: Vertical, tables: Mapping[str, pd.DataFrame], captions: pd.Series) -> None:
        pairs = tables["pairs"][tables["pairs"]["split"] == "dev"]
        if pairs.empty:
            raise DataError("pairs: none in split dev; the ladder judges dev")
        asked = pairs[["pair_id", "query_id", "item_id"]].merge(tables["queries"][["query_id", "demands"]])
        rows = asked.merge(tables["items"], on="item_id", validate="m:1").set_index("pair_id")
        self._rows = {str(pair_id): row for pair_id, row in rows.to_dict("index").items()}
        self._vertical, self._captions, self._text = vertical, captions, SymbolicTeacher(vertical, ())

    def levels(self, pair_id: str, rungs: Iterable[Rung]) -> pd.DataFrame:
        """The level of each demand (rows, by the shopper's words) on each rung (columns) of one pair."""
        row = self._rows[pair_id]
        demands = load_demands(row["demands"])
        read = {rung.name: self._stated(row, rung) for rung in rungs}
        return pd.DataFrame(
            {
                name: {demand.surface: verdict(self._vertical, demand, stated).level for demand in demands}
                for name, stated in read.items()
            }
        )

    def climb(self, rungs: Iterable[Rung]) -> pd.DataFrame:
        """Its answers to all dev pairs on every rung, as :func:`ladder_table` reads them."""
        answers = [
            (
                rung.name,
                pair_id,
                judge(self._vertical, load_demands(row["demands"]), self._stated(row, rung)).label,
            )
            for rung in rungs
            for pair_id, row in self._rows.items()
        ]
        frame = pd.DataFrame(answers, columns=["system", "pair_id", "label"])
        return frame.assign(sample=0, parse_kind=PARSED, tokens=0)

    def _stated(self, row: Mapping[Any, Any], rung: Rung) -> dict[str, str]:
        stated = self._text.read_item(row if "cpv" in rung.sections else {**row, "cpv": "{}"})
        if "picture" in rung.sections and (caption := self._captions[row["item_id"]]):
            stated |= {name: value for value, name in read_caption(self._vertical, caption) if name}
        return stated


def ladder_table(
    samples: pd.DataFrame, gold: pd.DataFrame, rng: np.random.Generator, resamples: int = 1000
) -> pd.DataFrame:
    """pass@1 of every rung, and its gain over the rung below and over the lowest, on the same pairs.

    Args:
        samples: rows of all rungs, in the order of the ladder.
        gold: pair_id, query_id, label, kind of the pairs that were judged.
        rng: source of the resamples.
        resamples: bootstrap resamples behind each interval, of queries.

    Returns:
        Columns system (the rung), pairs ("all", or a kind of ``TOLD`` that occurs), value, low, high, n
        (pairs), gain, gain_low, gain_high over the rung below, total, total_low, total_high over the lowest
        (all NaN on the lowest), parse_rate.
    """
    groups = {"all": gold} | {kind: part for kind in TOLD if len(part := gold[gold["kind"] == kind])}
    rows = []
    for group, part in groups.items():
        climbed: list[pd.Series] = []
        for system, drawn in samples[samples["pair_id"].isin(part["pair_id"])].groupby("system", sort=False):
            scored = summarise(drawn, part, k=1)
            right, queries = scored["pass_at_1"], scored["query_id"]
            low, high = cluster_bootstrap(right, queries, resamples, rng)
            row = {"system": system, "pairs": group, "value": right.mean(), "low": low, "high": high}
            row |= {"n": len(scored), "parse_rate": scored["parse_rate"].mean()}
            for name, other in (("gain", climbed[-1:]), ("total", climbed[:1])):
                gain = paired_difference(right, other[0], queries, resamples, rng) if other else (np.nan,) * 3
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), gain, strict=True))
            climbed.append(right)
            rows.append(row)
    return pd.DataFrame(rows)


def ladder_overview(scores: pd.DataFrame, trainings: pd.Series) -> pd.DataFrame:
    """Judges side by side on all pairs, by rung: pass@1 and the gain over the rung below, as text.

    Args:
        scores: rows of :func:`ladder_table` with one more column, ``judge``.
        trainings: pass@1 by rung and training of the judge that was trained, for the last columns.
    """
    columns = {}
    for who, part in scores[scores["pairs"] == "all"].groupby("judge", sort=False):
        for name, of in (("pass@1", ["value", "low", "high"]), ("gain", ["gain", "gain_low", "gain_high"])):
            spans = part.set_index("system")[of].dropna().itertuples(name=None)
            columns[who, name] = pd.Series({rung: f"{at:.3f} [{a:.3f}, {b:.3f}]" for rung, at, a, b in spans})
    columns |= {("by training", f"{name}"): part.round(3) for name, part in trainings.unstack().items()}
    return pd.DataFrame(columns, index=scores["system"].unique()).fillna("")


def without_model(pairs: pd.DataFrame) -> dict[str, float]:
    """pass@1 on dev pairs of judges that need no model: uniform guessing, and the usual label of train."""
    usual = str(pairs.loc[pairs["split"] == "train", "label"].value_counts().sort_index().idxmax())
    hits = pairs.loc[pairs["split"] == "dev", "label"] == usual
    return {"uniform guessing": expected_chance_pass_at_k(1), f"always {usual}": float(hits.mean())}
