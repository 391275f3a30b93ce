"""From any vertical's judged pairs to a benchmark in RAIR's three subsets, step by step.

RAIR (arXiv 2512.24943) publishes what its subsets hold and not how they were drawn. Every step here is a
function on a table, so that the whole recipe can be read, run by hand, and changed:

1. :func:`candidates` joins pairs, queries and items;
2. :func:`settled_by_picture` marks pairs that the text gets wrong and the picture gets right;
3. :func:`reference_answers` lets a reference judge answer every pair, learning only from pairs of other
queries;
4. :func:`assign_subsets` gives each pair to one subset or to none;
5. :func:`draw` takes so many of each, balanced over industries, and :func:`build` puts the steps in a row.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from scipy.sparse import hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.naive_bayes import MultinomialNB

from lore_lib.errors import DataError
from lore_lib.features.build import caption_items
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.rair.benchmark import BUNDLED, ROW, SUBSETS, Benchmark
from lore_lib.rair.intents import RuleIntents, intents_of
from lore_lib.rng import generator
from lore_lib.vertical.contract import Tables
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.rules import judge
from lore_lib.vertical.schema import load_demands
from lore_lib.vertical.world import generate_tables

VERSION = "1.0"
"""Of the recipe below and of what it makes; another byte in a file asks for another version."""

OUT = ""
"""The subset of a pair that no subset takes."""


@dataclass(frozen=True)
class Recipe:
    """How much of what; with a vertical's pairs and a version it decides every byte of a benchmark.

    Attributes:
        general, hard, visual: pairs of each subset, fewer where there are not as many.
        industry_cap: no industry gives more than this share of the general subset (RAIR's largest: 12.8 %).
        folds: of the cross-fitting of the reference judge.
        seed: root of the draws.
        pool_queries: test queries of the generated pool, for the bundled verticals.
        pool_pairs: pairs of each.
    """

    general: int = 200
    hard: int = 200
    visual: int = 100
    industry_cap: float = 0.4
    folds: int = 5
    seed: int = 2025
    pool_queries: int = 800
    pool_pairs: int = 4

    def __post_init__(self) -> None:
        low = {name: value for name, value in asdict(self).items() if name != "seed" and value <= 0}
        if low or self.industry_cap > 1 or self.folds < 2:
            raise DataError(f"found {self}; sizes must be above 0, folds 2 or more, industry_cap at most 1")


def pool(vertical: Vertical, recipe: Recipe) -> Tables:
    """Fresh pairs of the vertical's world, all of the test split, with ids of their own.

    The split of a query follows from a hash of its meaning, so no run of any seed has trained on one of
    these.
    """
    tables = generate_tables(vertical, {"test": recipe.pool_queries}, recipe.pool_pairs, 0, recipe.seed)
    ids = ("pair_id", "query_id", "item_id")
    return {
        name: table.assign(
            **{
                key: table[key].str.replace("test-", "mini-", n=1)
                for key in ids
                if key in table and len(table)
            }
        )
        for name, table in tables.items()
    } | {"clicks": pd.DataFrame(columns=["query_id", "item_id", "clicks"])}


def candidates(tables: Tables) -> pd.DataFrame:
    """The test pairs with their query and item, one row each, in the order of ``pairs``.

    Returns:
        The columns of the three tables; ``demands``, ``path``, ``truth`` are "" where the tables lack them,
        and ``dimension`` is the one that decides the label: the first of the path's lowest verdicts, else
        the mismatch.

    Raises:
        DataError: no test pairs, or a pair whose query or item is unknown.
    """
    pairs = tables["pairs"]
    rows = pairs[pairs["split"] == "test"].reset_index(drop=True)
    if rows.empty:
        raise DataError(
            f"none of {len(pairs)} pairs has split test; mark some queries and their pairs as test."
        )
    for name, key in (("queries", "query_id"), ("items", "item_id")):
        table = tables[name].drop(columns="split", errors="ignore")
        lost = rows.loc[~rows[key].isin(table[key]), key]
        if len(lost):
            raise DataError(
                f"{len(lost)} test pairs name an unknown {key}, first {lost.iloc[0]}; add its row."
            )
        rows = rows.join(table.set_index(key), on=key, validate="m:1")
    rows = rows.assign(**{name: "" for name in ("demands", "path", "truth") if name not in rows})
    return rows.assign(dimension=[_decides(*row) for row in zip(rows["path"], rows["mismatch"], strict=True)])


def _decides(path: str, mismatch: str) -> str:
    steps = json.loads(path) if path else []
    lowest = min(steps, key=lambda step: step["level"], default=None)
    return str(lowest["dimension"]) if lowest and lowest["level"] < 4 else mismatch


def settled_by_picture(rows: pd.DataFrame, vertical: Vertical, captions: pd.Series) -> pd.Series:
    """Whether text cannot settle a pair and its picture does: the rule engine is asked twice.

    Once with what the seller states of the pictured dimensions, once with what the picture shows of them.
    The pair is visual where the first verdict is not the gold label and the second is. Everything else about
    the item is known both times, so that only the picture can make the difference. Rows without demands or
    true attributes keep the mark of whoever annotated them (``kind`` visual).

    Args:
        rows: from :func:`candidates`.
        vertical: rules and pictured dimensions.
        captions: ``item_id`` -> what a captioner saw, ", " between its values, None where it abstained.
    """
    marks = []
    for row in rows.to_dict("records"):
        if not (row["demands"] and row["truth"]):
            marks.append(row["kind"] == "visual")
            continue
        demands, truth = load_demands(row["demands"]), json.loads(row["truth"])
        stated, cpv = {k: v for k, v in truth.items() if k not in vertical.pictured}, json.loads(row["cpv"])
        told = stated | {name: cpv[name] for name in vertical.pictured if name in cpv}
        shown = captions[row["item_id"]]
        seen = dict(zip(vertical.pictured, shown.split(", "), strict=False)) if isinstance(shown, str) else {}
        by_text, by_picture = (judge(vertical, demands, item).label for item in (told, told | seen))
        marks.append(by_text != row["label"] and by_picture == row["label"])
    return pd.Series(marks, index=rows.index, dtype=bool)


def reference_answers(rows: pd.DataFrame, folds: int) -> pd.Series:
    """What a naive Bayes judge says of each pair: a yardstick of "too hard for word matching".

    It reads which 3-grams of the query the item's title and attributes hold and which they lack. Each pair is
    answered by a judge that was fitted on the pairs of other queries (k folds of whole queries), so that no
    pair is easy because it was seen. It is in no table of systems: a subset that is hard *for a system*
    would be unfair to that system alone. Relatives of it (TF-IDF, n-gram overlap) still look somewhat worse
    on *hard* than they are.

    Raises:
        DataError: pairs of fewer than two queries.
    """
    queries = rows["query_id"].nunique()
    if queries < 2:
        raise DataError(
            f"{len(rows)} pairs of {queries} query; the reference judge learns from other queries: give 2"
        )
    grams = CountVectorizer(analyzer="char_wb", ngram_range=(3, 3), binary=True)
    item = grams.fit_transform(rows["title"] + " " + rows["cpv"])
    query = grams.transform(rows["query"])
    shared = query.multiply(item)
    features = hstack([shared, query - shared]).tocsr()
    splits = GroupKFold(min(folds, queries))
    said = cross_val_predict(MultinomialNB(), features, rows["label"], groups=rows["query_id"], cv=splits)
    return pd.Series(said, index=rows.index)


def assign_subsets(rows: pd.DataFrame) -> pd.Series:
    """The subset of each pair by its columns visual, intent, reference, label: the first line that holds.

    - visual: the picture settles it and text does not.
    - hard: a long-tail intent, and the reference judge fails.
    - general: a plain query.

    The rest, long-tail pairs that word matching solves, is in none (``OUT``): it would make *general* another
    thing than plain queries, or *hard* easier than its name.
    """
    tail = rows["intent"] != "plain"
    hard = tail & (rows["reference"] != rows["label"])
    names = np.select([rows["visual"], hard, ~tail], ["visual", "hard", "general"], OUT)
    return pd.Series(names, index=rows.index)


def industry_quotas(available: pd.Series, size: int, most: int) -> pd.Series:
    """Pairs to take of each industry: as equal as can be, none above ``most``, ``size`` in all where
    possible.

    >>> industry_quotas(pd.Series({"a": 2, "b": 50, "c": 50}), 11, 4).to_dict()
    {'a': 2, 'b': 4, 'c': 4}
    """
    room = available.clip(upper=most)
    level = max((n for n in range(most + 1) if room.clip(upper=n).sum() <= size), default=0)
    quotas = room.clip(upper=level)
    left = size - int(quotas.sum())
    more = room.index[room > level][: max(left, 0)]  # one more each, in the order of names
    return quotas.add(pd.Series(1, index=more), fill_value=0).astype(int)


def draw(rows: pd.DataFrame, recipe: Recipe, rng: np.random.Generator) -> pd.DataFrame:
    """The rows of the benchmark: each subset's share, balanced over industries, in the order of SUBSETS.

    Raises:
        DataError: no pair in any subset.
    """
    parts = []
    for subset in SUBSETS:
        size = getattr(recipe, subset)
        part = rows[rows["subset"] == subset]
        part = part.iloc[rng.permutation(len(part))]
        most = max(1, int(recipe.industry_cap * size)) if subset == "general" else size
        quotas = industry_quotas(part["industry"].value_counts().sort_index(), size, most)
        place = part.groupby("industry").cumcount()
        parts.append(part[place < part["industry"].map(quotas).astype(int)].sort_index())
    drawn = pd.concat(parts)
    if drawn.empty:
        raise DataError(f"no pair of {len(rows)} fits a subset; mark kinds and intents, see data/README.md")
    return drawn


def build(
    name: str, tables: Tables, vertical: Vertical, captions: pd.Series, recipe: Recipe, version: str = VERSION
) -> Benchmark:
    """All steps in a row: the benchmark of a vertical's test pairs.

    The intents are those of the queries table: let :func:`lore_lib.rair.intents.intents_of` fill them in.
    """
    rows = candidates(tables)
    rows["visual"] = settled_by_picture(rows, vertical, captions)
    rows["reference"] = reference_answers(rows, recipe.folds)
    return freeze(name, rows, recipe, version)


def freeze(name: str, rows: pd.DataFrame, recipe: Recipe, version: str) -> Benchmark:
    """The last two steps: subsets, then the draw.

    Args:
        name: of the benchmark.
        rows: from :func:`candidates`, with the columns ``visual`` and ``reference``.
        recipe: how much of what.
        version: of the recipe and its rows.
    """
    drawn = draw(rows.assign(subset=assign_subsets(rows)), recipe, generator(recipe.seed, "benchmark", name))
    return Benchmark(name, version, drawn[list(ROW)].reset_index(drop=True))


def build_mini(vertical_name: str, recipe: Recipe | None = None) -> Benchmark:
    """RAIR-mini of a vertical with a world, from nothing but its definition: of a bundled one, the same bytes
    as in the repository."""
    vertical, recipe = load_vertical(vertical_name), recipe or Recipe()
    tables = pool(vertical, recipe)
    tables["queries"] = intents_of(RuleIntents(vertical), tables["queries"])
    captions = caption_items(tables["items"], PixelCaptioner(vertical))
    return build(f"{BUNDLED}/{vertical_name}", tables, vertical, captions, recipe)


def own_recipe(rows: pd.DataFrame) -> Recipe:
    """A recipe for own data that leaves no pair out for its number, and none of a lone industry.

    Args:
        rows: from :func:`candidates`.
    """
    recipe, pairs = Recipe(), len(rows)
    cap = max(recipe.industry_cap, 1 / rows["industry"].nunique())
    return replace(recipe, general=pairs, hard=pairs, visual=pairs, industry_cap=cap)
