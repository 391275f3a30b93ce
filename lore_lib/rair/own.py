"""The benchmark of a vertical's own test pairs: RAIR's subsets as far as its tables can fill them, and what
they lack for the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lore_lib.config import Config
from lore_lib.cot.captioner import caption, open_captioner
from lore_lib.cot.teacher import SymbolicTeacher
from lore_lib.errors import DataError
from lore_lib.rair.benchmark import Benchmark
from lore_lib.rair.builder import (
    OUT,
    assign_subsets,
    candidates,
    freeze,
    own_recipe,
    reference_answers,
    settled_by_picture,
)
from lore_lib.rair.intents import FAILED, ChatIntents, open_intents
from lore_lib.rair.metrics import align
from lore_lib.rair.systems import asked_pairs, endpoint_judge
from lore_lib.vertical.contract import Tables
from lore_lib.vertical.definition import Vertical, verticals_folder

OWN = "own"
"""Name of the benchmark that holds the verticals of a team's own tables."""

UNREAD = 0.05
"""Most distinct queries that a chat model may leave unclassified."""


class OwnBenchmark(NamedTuple):
    """A benchmark, and a sentence on each thing that its tables did not tell or that left a subset empty."""

    benchmark: Benchmark
    notes: list[str]


def has_tables(vertical: Vertical) -> bool:
    """Whether a vertical brings tables of its own: a section ``tables``, or Parquet beside its file."""
    return vertical.tables is not None or (verticals_folder() / vertical.name / "pairs.parquet").exists()


def build_own(
    config: Config,
    vertical: Vertical,
    tables: Tables,
    cache: Path,
    name: str,
    version: str,
    answers: pd.DataFrame | None = None,
) -> OwnBenchmark:
    """The benchmark of all test pairs that fit a subset.

    Args:
        config: ``rair.intents`` (who names the intents), ``features.captioner`` (who looks at the pictures)
            and ``rair.judge_model`` (the reference judge, where there is one and no ``answers``).
        vertical: its words and rules.
        tables: the vertical's own.
        cache: folder that keeps the replies of endpoints, so that a killed build asks nothing twice.
        name: such as "own/shop".
        version: raise it whenever the rows change.
        answers: pair_id, label of the reference judge, for every test pair and no other; None asks
            ``rair.judge_model``, or else fits naive Bayes on the pairs of other queries.

    Raises:
        DataError: no test pairs, answers that do not fit them, too many queries that the model could not
            classify, or no pair in any subset.
        EngineError: an endpoint that does not answer; what it answered is kept.
    """
    notes: list[str] = []
    tables = of_test_split(tables)
    tables["queries"], said = _with_intents(config, vertical, tables["queries"], cache)
    notes += said
    rows = candidates(tables)
    rows["visual"], note = _visual(config, vertical, tables, rows)
    rows["reference"] = _reference(config, tables, rows, cache, answers)
    made = freeze(name, rows, own_recipe(rows), version)
    return OwnBenchmark(made, [*notes, note, *_left_out(rows, assign_subsets(rows), made)])


def of_test_split(tables: Tables) -> Tables:
    """The test pairs with their queries and items alone: nobody is asked about the others.

    Raises:
        DataError: there is none.
    """
    pairs = tables["pairs"][tables["pairs"]["split"] == "test"]
    if pairs.empty:
        raise DataError(
            f"none of {len(tables['pairs'])} pairs has split test: map a column 'split' of queries or pairs, "
            "or judge more queries (without a split, 2 of 20 are test by a hash of their text)"
        )
    parts = {
        name: tables[name][tables[name][key].isin(pairs[key])].reset_index(drop=True)
        for name, key in (("queries", "query_id"), ("items", "item_id"))
    }
    return {**tables, **parts, "pairs": pairs.reset_index(drop=True)}


def _with_intents(
    config: Config, vertical: Vertical, queries: pd.DataFrame, cache: Path
) -> tuple[pd.DataFrame, list[str]]:
    """The queries with the intents of ``rair.intents``, and what is to be known of them."""
    classifier = open_intents(config, vertical, cache / "intents.sqlite")
    if classifier is None:
        return queries, []
    found = classifier.classify(queries["query"].tolist())
    notes = [f"intents, {config.rair.intents}: {_counted(found)}"]
    if isinstance(classifier, ChatIntents):
        unread = queries["query"][[intent == FAILED for intent in found]].nunique()
        if unread > UNREAD * queries["query"].nunique():
            reasons = ", ".join(f"{reason} {count}" for reason, count in classifier.failures.items())
            raise DataError(
                f"{config.rair.intents_model} gave no intent for {unread} of {queries['query'].nunique()} "
                f"queries ({reasons}); take a model that keeps to JSON, or lower its temperature"
            )
    elif not (vertical.world and vertical.world.negations):
        notes.append("intents: the vertical declares no world.negations, so rules find neither NC nor ER")
    return queries.assign(intent=[intent or "plain" for intent in found]), notes


def _visual(config: Config, vertical: Vertical, tables: Tables, rows: pd.DataFrame) -> tuple[pd.Series, str]:
    """Whether each pair is visual, and by whose word."""
    none = pd.Series(False, index=rows.index)
    pictures = int((tables["items"]["picture"].map(len) > 0).sum())
    known = bool((rows["demands"].ne("") & rows["truth"].ne("")).any())
    if not pictures:
        return (
            none,
            f"visual: none of {len(tables['items'])} items has a picture, so there is no visual subset",
        )
    if not known and (rows["kind"] != "plain").any():
        marks = rows["kind"] == "visual"
        return marks, f"visual: {marks.sum()} pairs, as your annotators marked them (kind)"
    if not vertical.pictured:
        return none, "visual: no pair has a kind, and the vertical names no 'pictured' dimension"
    captioner = open_captioner(config, vertical)
    captions = caption(tables, captioner, vertical)
    settled = settled_by_picture if known else settled_by_caption
    marks = settled(rows, vertical, captions)
    return marks, (
        f"visual: {marks.sum()} pairs that captions of {captioner.name!r} settle and text does not; "
        f"{captions.notna().sum()} of {pictures} pictures have a caption"
    )


def settled_by_caption(rows: pd.DataFrame, vertical: Vertical, captions: pd.Series) -> pd.Series:
    """As :func:`lore_lib.rair.builder.settled_by_picture`, where nobody knows the true attributes: what the
    seller states and the query says is all that the rule engine is given, without the caption and with it.

    Args:
        rows: from :func:`lore_lib.rair.builder.candidates`.
        vertical: words, rules and pictured dimensions.
        captions: ``item_id`` -> what a captioner saw, None where it abstained.
    """
    blind, seeing = (SymbolicTeacher(vertical, stages) for stages in (("rules",), ("vision", "rules")))
    marks = []
    for row in rows.to_dict("records"):
        seen = captions[row["item_id"]]
        pair = (row["query_id"], row["query"], row, seen if isinstance(seen, str) else None)
        by_text, by_picture = (teacher.write(*pair).label for teacher in (blind, seeing))
        marks.append(by_text != row["label"] and by_picture == row["label"])
    return pd.Series(marks, index=rows.index, dtype=bool)


def _reference(
    config: Config, tables: Tables, rows: pd.DataFrame, cache: Path, answers: pd.DataFrame | None
) -> pd.Series:
    """What the reference judge says of each pair; "" where its answer could not be read: it fails there."""
    if answers is None and config.rair.judge_model:
        captions = pd.Series(None, index=tables["items"]["item_id"].to_numpy(), dtype=object)
        asked = asked_pairs(tables, captions, config.features, None)
        answers = endpoint_judge(config, cache / "reference.sqlite").answer(asked)
    if answers is None:
        return reference_answers(rows, own_recipe(rows).folds)
    gold = rows[["pair_id", "query_id", "label"]]
    return align(answers[["pair_id", "label"]], gold).set_index(rows.index)["predicted"]


def _left_out(rows: pd.DataFrame, subsets: pd.Series, made: Benchmark) -> Iterator[str]:
    """Why a subset has no pair, and which pairs are in none."""
    if left := int((subsets == OUT).sum()):
        yield f"none: {left} long-tail pairs that the reference judge gets right are in no subset"
    if capped := int((subsets == "general").sum()) - made.counts()["subsets"]["general"]:
        yield f"general: {capped} plain pairs are left out, so that no industry outweighs the others"
    tail = rows["intent"] != "plain"
    if not (subsets == "hard").any():
        yield (
            "hard: the reference judge fails on no long-tail pair"
            if tail.any()
            else "hard: every query has the intent plain, so there is no hard subset; map 'intent', or let "
            "--intents rules or openai find them"
        )
    if not (subsets == "general").any():
        yield "general: no query has the intent plain, so there is no general subset"


def _counted(names: list[str]) -> str:
    return ", ".join(f"{name or 'unread'} {count}" for name, count in Counter(names).most_common())
