"""The generated world: reproducible, balanced, without leaks between splits, labelled by the rules alone."""

import json

import pandas as pd
import pytest

from lore_lib.errors import DataError
from lore_lib.rng import generator
from lore_lib.vertical.definition import Vertical, load_vertical, vertical_names
from lore_lib.vertical.kinds import JOIN
from lore_lib.vertical.rules import judge
from lore_lib.vertical.schema import INTENTS, KINDS, LABELS, Demand, dump_demands, load_demands
from lore_lib.vertical.tables import COLUMNS, check_tables
from lore_lib.vertical.world import World, generate_tables

Tables = dict[str, pd.DataFrame]
SIZES = {"train": 20, "dev": 4, "test": 6}


@pytest.fixture(scope="module", params=vertical_names())
def vertical(request: pytest.FixtureRequest) -> Vertical:
    """Each bundled vertical in turn."""
    return load_vertical(request.param)


@pytest.fixture(scope="module")
def world_tables(vertical: Vertical) -> Tables:
    """A small world of it; treat it as read-only."""
    return generate_tables(vertical, {"train": 60, "dev": 8, "test": 12}, 4, 2, 17)


def joined(tables: Tables) -> pd.DataFrame:
    """One row per pair with its query's demands and its item's truth."""
    pairs = tables["pairs"].merge(tables["queries"].drop(columns="split"), on="query_id")
    return pairs.merge(tables["items"], on="item_id")


def test_the_same_seed_makes_the_same_tables_and_another_seed_others(vertical: Vertical) -> None:
    first, again, other = (generate_tables(vertical, SIZES, 3, 2, seed) for seed in (17, 17, 18))
    for name in COLUMNS:
        pd.testing.assert_frame_equal(first[name], again[name])
    assert first["items"].title.tolist() != other["items"].title.tolist()


def test_a_split_does_not_depend_on_the_size_of_another(vertical: Vertical) -> None:
    small, large = (
        generate_tables(vertical, SIZES, 3, 2, 17),
        generate_tables(vertical, SIZES | {"train": 30}, 3, 2, 17),
    )
    for name in ("queries", "pairs"):
        one, other = (tables[name][tables[name].split == "test"] for tables in (small, large))
        pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))


def test_the_tables_keep_the_contract(world_tables: Tables) -> None:
    check_tables(world_tables, "world")
    assert len(world_tables["queries"]) == 80
    assert len(world_tables["pairs"]) == 80 * 4
    assert len(world_tables["items"]) == 80 * 6
    assert set(world_tables["pairs"].kind) == set(KINDS)
    assert set(world_tables["queries"].intent) <= set(INTENTS)
    assert not world_tables["queries"]["query"].duplicated().any()


def test_labels_are_balanced_in_every_split(world_tables: Tables) -> None:
    shares = pd.crosstab(world_tables["pairs"].split, world_tables["pairs"].label, normalize="index")
    assert list(shares.columns) == list(LABELS)
    assert shares.to_numpy().min() > 0.15  # dev has 32 pairs only
    assert shares.to_numpy().max() < 0.35
    whole = world_tables["pairs"].label.value_counts(normalize=True)
    assert whole.between(0.20, 0.30).all()  # some queries have no near item


def test_the_gold_label_is_the_rules_over_the_truth(vertical: Vertical, world_tables: Tables) -> None:
    for row in joined(world_tables).itertuples():
        gold = judge(vertical, load_demands(str(row.demands)), json.loads(str(row.truth)))
        assert (row.label, row.mismatch) == (gold.label, gold.mismatch)
        assert json.loads(str(row.path)) == [vars(step) for step in gold.path]
        assert row.mismatch == "" or row.label == "L2"


def test_no_query_meaning_and_no_item_stands_in_two_splits(world_tables: Tables) -> None:
    meanings: dict[str, set[frozenset[tuple[str, str, bool]]]] = {}
    for row in world_tables["queries"].itertuples():
        meaning = frozenset((d.dimension, d.value, d.negated) for d in load_demands(str(row.demands)))
        meanings.setdefault(str(row.split), set()).add(meaning)
    assert not meanings["train"] & meanings["test"]
    assert not meanings["train"] & meanings["dev"]
    assert not meanings["dev"] & meanings["test"]
    split_of = world_tables["queries"].set_index("query_id").split
    seen = pd.concat([world_tables[name][["query_id", "item_id"]] for name in ("pairs", "clicks")])
    assert (seen.assign(split=seen.query_id.map(split_of)).groupby("item_id").split.nunique() == 1).all()
    assert set(seen.item_id) <= set(world_tables["items"].item_id)


def test_a_paraphrase_stays_in_its_split(vertical: Vertical) -> None:
    rng = generator(17, "paraphrase")
    for _ in range(50):
        query = World(vertical).draw_query(rng)
        reworded = tuple(
            Demand(d.dimension, d.value, "other words", d.negated) for d in reversed(query.demands)
        )  # a nickname in place of a value among them
        assert type(query)("other text", "plain", reworded).split == query.split


def test_a_query_asks_only_for_what_its_category_can_have(vertical: Vertical, world_tables: Tables) -> None:
    assert vertical.world
    for row in joined(world_tables).itertuples():
        demands, truth = load_demands(str(row.demands)), json.loads(str(row.truth))
        asked, had = (vertical.group_of[c] for c in (demands[0].value, truth["category"]))
        for dimension, groups in vertical.world.only.items():
            assert asked in groups or dimension not in {d.dimension for d in demands}
            assert had in groups or dimension not in truth or dimension in vertical.pictured


def test_all_intents_are_drawn(vertical: Vertical) -> None:
    world, rng = World(vertical), generator(17, "intents")
    assert {world.draw_query(rng).intent for _ in range(600)} == set(INTENTS)


def test_a_vertical_without_a_world_says_so(vertical: Vertical) -> None:
    with pytest.raises(DataError, match="has no section 'world' and no tables"):
        World(vertical.model_copy(update={"world": None}))


def test_each_kind_means_what_it_says(vertical: Vertical, world_tables: Tables) -> None:
    for row in joined(world_tables).itertuples():
        demands, truth, cpv = (
            load_demands(str(row.demands)),
            json.loads(str(row.truth)),
            json.loads(str(row.cpv)),
        )
        told = {key: value for key, value in truth.items() if key not in vertical.pictured}
        told |= {"color": cpv["color"]} if "color" in cpv else {}
        known = [d for d in demands if d.surface not in vertical.lexicon]
        without_picture = judge(vertical, demands, told).label
        without_lexicon = judge(vertical, known, truth).label if known else ""
        without_rules = judge(vertical, demands, truth, industry_rules=False).label
        if row.kind == "visual":
            assert without_picture != row.label
        elif row.kind == "knowledge":
            assert without_lexicon != row.label == without_picture
        elif row.kind == "boundary":
            assert without_rules != row.label == without_picture == without_lexicon
        else:
            assert without_rules == row.label == without_picture == without_lexicon


def test_the_text_never_tells_a_colour_that_the_cpv_does_not(
    vertical: Vertical, world_tables: Tables
) -> None:
    for row in world_tables["items"].itertuples():
        stated = json.loads(str(row.cpv)).get("color")
        assert set(str(row.title).split()) & set(vertical.shades) <= {stated}


def test_selling_points_tell_only_true_meanings(vertical: Vertical, world_tables: Tables) -> None:
    told = 0
    for row in world_tables["items"].itertuples():
        truth = json.loads(str(row.truth))
        for point in filter(None, str(row.selling_points).split("; ")):
            surface, _, meaning = point.rstrip(")").partition(" (")
            ((dimension, value),) = vertical.lexicon[surface].means.items()
            assert value == meaning
            assert set(value.split(JOIN)) <= set(truth[dimension].split(JOIN))
            told += 1
    assert told > 50


def test_clicks_follow_relevance(world_tables: Tables) -> None:
    pairs = world_tables["pairs"].merge(world_tables["clicks"], on=["query_id", "item_id"], how="left")
    mean = pairs.fillna({"clicks": 0}).groupby("label").clicks.mean()
    assert mean["L4"] > mean["L3"] > mean["L2"] > mean["L1"]
    only_clicked = set(world_tables["clicks"].item_id) - set(world_tables["pairs"].item_id)
    assert only_clicked, "clicked_per_query adds items that no pair shows"


def test_intents_follow_the_words_of_the_query(vertical: Vertical, world_tables: Tables) -> None:
    for row in world_tables["queries"].itertuples():
        demands = load_demands(str(row.demands))
        slang = {vertical.lexicon[d.surface].intent for d in demands if d.surface in vertical.lexicon}
        if row.intent in ("NC", "ER"):
            assert any(d.negated for d in demands)
        elif row.intent in ("DJ", "SS"):
            assert row.intent in slang
        else:
            assert not slang
            assert not any(d.negated for d in demands)
        assert all(word in str(row.query) for d in demands for word in d.surface.split())


def test_demands_survive_their_json() -> None:
    demands = (Demand("color", "mint", "matcha"), Demand("brand", "Relo", "Relo dupe", True))
    assert load_demands(dump_demands(demands)) == demands


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_an_item_drawn_for_a_level_nearly_always_reaches_it(vertical: Vertical, level: int) -> None:
    world, rng = World(vertical), generator(17, "levels", level)
    labels = []
    for _ in range(100):
        query = world.draw_query(rng)
        labels.append(judge(vertical, query.demands, world.draw_item(query, level, rng).truth).label)
    assert labels.count(f"L{level}") >= 90
