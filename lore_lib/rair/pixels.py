"""Captions against pixels: one student goes on with the same chains in three ways and judges a benchmark.

The ways differ in the picture's line of the prompt and in nothing else. How good must a captioner be before
it is better than reading pixels? The student of captions judges with ever more of them wrong, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.config import Config
from lore_lib.errors import DataError
from lore_lib.features.build import build_prompts
from lore_lib.features.template import load_template
from lore_lib.parallel import run_parallel
from lore_lib.rair.benchmark import SUBSETS, Benchmark
from lore_lib.rair.metrics import align
from lore_lib.rng import derive_seed, generator
from lore_lib.sampling.engine import load_tokenizer
from lore_lib.sampling.intervals import Spread, over_trainings, paired_difference
from lore_lib.training.pixels import PixelJob, nearest_words, pixel_prompts, run_pixels, sighted
from lore_lib.training.sft import sft_job
from lore_lib.vertical.contract import Tables
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.schema import RELEVANT

CAPTIONS, PIXELS, NOTHING = "captions", "pixels", "no picture"
"""What stands in the picture's line: what a captioner saw, soft tokens of the picture itself, or no line."""

SHARES = (0.0, 0.1, 0.3)
"""Of the judged items' captions, how many name a wrong value: how good must a captioner be?"""


def spoil(captions: pd.Series, values: Sequence[str], share: float, rng: np.random.Generator) -> pd.Series:
    """Captions of which a share names another of ``values`` in place of its own; the others stay.

    Args:
        captions: ``item_id`` -> values with ", " between them, None where there is none.
        values: of one dimension, such as the colours.
        share: of the captions that name one of them, to the nearest whole number.
        rng: picks items and wrong values. The same draws spoil the same items first: 10 % are among the 30 %.

    Raises:
        DataError: fewer than two values.
    """
    if len(values) < 2:
        raise DataError(f"a wrong value needs another one; found {', '.join(values) or 'none'}")
    place = {value: at for at, value in enumerate(values)}
    naming = [at for at, text in enumerate(captions) if place.keys() & _parts(text)]
    order, steps = rng.permutation(naming), rng.integers(1, len(values), len(naming))
    told = captions.to_list()
    for at, step in list(zip(order, steps, strict=True))[: round(share * len(naming))]:
        parts = [
            values[(place[part] + step) % len(values)] if part in place else part
            for part in told[at].split(", ")
        ]
        told[at] = ", ".join(parts)
    return pd.Series(told, index=captions.index, dtype=object)


def _parts(text: object) -> set[str]:
    return set(text.split(", ")) if isinstance(text, str) else set()


def ways_to_see(
    config: Config, tables: Tables, captions: pd.Series, shares: Sequence[float], values: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Prompts of all pairs, one frame for each way: pair_id, prompt, picture.

    Args:
        config: template, budget, tokenizer and seed.
        tables: pairs, queries, items.
        captions: ``item_id`` -> what a captioner saw.
        shares: of wrong captions; 0 is ``CAPTIONS`` itself.
        values: that a wrong caption may name.
    """
    features, tokenizer = config.features, load_tokenizer(config.model.base)
    told = {NOTHING: pd.Series([None] * len(captions), index=captions.index, dtype=object)}
    for share in shares:
        rng = generator(config.seed, "spoiled captions")
        told[spoiled_name(share)] = spoil(captions, values, share, rng) if share else captions
    wording = load_template(features.template)
    how = {"template": wording, "tokenizer": tokenizer}
    built = {
        name: build_prompts(tables, seen, features.budget, **how).assign(picture=b"")
        for name, seen in told.items()
    }
    built[PIXELS] = pixel_prompts(tables, features.template, features.budget, tokenizer)
    return {name: frame[["pair_id", "prompt", "picture"]] for name, frame in built.items()}


def spoiled_name(share: float) -> str:
    """ "captions", or "captions, 30 % wrong"."""
    return f"{CAPTIONS}, {share:.0%} wrong".replace("%", " %") if share else CAPTIONS


def captioned_items(tables: Tables, captions: pd.Series, pair_ids: pd.Series) -> pd.DataFrame:
    """The items of some pairs, with the column ``caption`` (None where there is none): lessons for an eye."""
    taught = tables["pairs"].loc[tables["pairs"]["pair_id"].isin(pair_ids), "item_id"]
    items = tables["items"][tables["items"]["item_id"].isin(taught)]
    return items.assign(caption=captions[items["item_id"]].to_numpy())


def first_reading(
    config: Config,
    start: Path,
    tables: Tables,
    captions: pd.Series,
    traces: pd.DataFrame,
    pictures: Sequence[bytes],
) -> list[list[str]]:
    """The words that an eye reads on each picture once it has learnt from the items of the traces' pairs."""
    lessons = captioned_items(tables, captions, traces["pair_id"])
    student, tokenizer = sighted(str(start), lessons, config.seed, config.model.dtype, config.model.device)
    return nearest_words(student, tokenizer, pictures)


def compare_pixels(
    config: Config,
    start: Path,
    tables: Tables,
    captions: pd.Series,
    traces: pd.DataFrame,
    bench: Benchmark,
    seen: pd.Series,
    vertical: Vertical,
    folder: Path,
) -> pd.DataFrame:
    """Tune a student in each way, once per seed, and let it judge.

    Args:
        config: ``rair.pixel_*``, and the batch of ``sft``.
        start: folder of the student that all begin from.
        tables: pairs, queries, items of the run.
        captions: what a captioner saw on them; the eye's first lesson, and the prompts of ``CAPTIONS``.
        traces: pair_id, completion, kept of the chains to teach.
        bench: the pairs to judge.
        seen: what a captioner saw on the benchmark's items; ``SHARES`` of it are made wrong.
        vertical: a wrong caption names another value of the first dimension that it pictures.
        folder: where the jobs' files go; finished answers are kept.

    Returns:
        system, seed, pair_id, label, parse_kind, completion, tokens. The student of ``CAPTIONS`` answers once
        for each share.
    """
    kept = traces[traces["kept"]]
    size = min(config.rair.pixel_pairs, len(kept))
    chains = kept.sample(size, random_state=generator(config.seed, "pixels"))[["pair_id", "completion"]]
    pairs = tables["pairs"][tables["pairs"]["pair_id"].isin(chains["pair_id"])]
    values = vertical.values(vertical.pictured[0])
    taught = ways_to_see(config, tables | {"pairs": pairs}, captions, (0.0,), values)
    judged = ways_to_see(config, bench.tables(), seen, SHARES, values)
    lessons = captioned_items(tables, captions, kept["pair_id"])[["picture", "caption"]]
    shown = write_parquet(lessons, folder / "lessons.parquet")
    asked = {
        name: write_parquet(frame, folder / f"asked-{at}.parquet")
        for at, (name, frame) in enumerate(judged.items())
    }
    jobs, names = [], []
    for seed in config.rair.pixel_seeds:
        for place, way in enumerate((CAPTIONS, PIXELS, NOTHING)):
            home = folder / f"way-{place}-{seed}"
            rows = chains.merge(taught[way], on="pair_id", validate="1:1")
            tune = replace(
                sft_job(config, way, write_parquet(rows, home / "rows.parquet"), home / "model"),
                base=str(start),
                epochs=1,
                learning_rate=config.rair.pixel_learning_rate,
                seed=derive_seed(config.seed, "pixels", seed),
            )
            mine = [name for name in judged if name.partition(",")[0] == way]
            judges = tuple((asked[name], home / f"answers-{at}.parquet") for at, name in enumerate(mine))
            sampling = config.sampling
            jobs.append(
                PixelJob(tune, shown, judges, sampling.max_completion_tokens, sampling.batch_completions)
            )
            names.append([(name, seed) for name in mine])
    done = run_parallel(run_pixels, jobs, config.runtime.workers, "ways to see")
    return pd.concat(
        [
            read_parquet(path).assign(system=name, seed=seed)
            for job_names, paths in zip(names, done, strict=True)
            for (name, seed), path in zip(job_names, paths, strict=True)
        ],
        ignore_index=True,
    )


def pixel_table(
    answers: pd.DataFrame, bench: Benchmark, resamples: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Scores of each way on each subset, the mean over its seeds, and its lead over ``CAPTIONS``.

    Args:
        answers: from :func:`compare_pixels`, over all pairs of the benchmark; unread ones count as wrong.
        bench: gold labels and subsets.
        resamples: bootstrap resamples of queries: how far other queries would move a number, not how far
            another training would.
        rng: source of the draws.

    Returns:
        system, subset, metric (acc@4, acc@2), value, low, high, n (pairs), seeds, lowest and highest (over
        seeds), gain, gain_low, gain_high over the students of whole captions, on the same pairs.
    """
    gold, scored = bench.rows.set_index("pair_id"), {}
    for system, parts in answers.groupby("system", sort=False):
        by_seed = {
            seed: align(part[["pair_id", "label"]], bench.rows) for seed, part in parts.groupby("seed")
        }
        for metric, side in (("acc@4", _itself), ("acc@2", _relevant)):
            scored[system, metric] = pd.DataFrame(
                {
                    seed: ((side(one["gold"]) == side(one["predicted"])) & one["predicted"].ne("")).to_numpy()
                    for seed, one in by_seed.items()
                },
                index=gold.index,
            )
    rows = []
    for (system, metric), right in scored.items():
        for subset in ("all", *(name for name in SUBSETS if (gold["subset"] == name).any())):
            where = gold.index if subset == "all" else gold.index[gold["subset"] == subset]
            mine, queries = right.loc[where].to_numpy().T, gold.loc[where, "query_id"]
            told = scored[CAPTIONS, metric].loc[where].mean(axis=1)
            spread = over_trainings(mine, queries, resamples, rng)
            gain = paired_difference(mine.mean(axis=0), told, queries, resamples, rng)
            rows.append((system, subset, metric, *spread, *gain))
    names = ["system", "subset", "metric", *Spread._fields, "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=names)


def _itself(labels: pd.Series) -> pd.Series:
    return labels


def _relevant(labels: pd.Series) -> pd.Series:
    return labels.isin(RELEVANT)
