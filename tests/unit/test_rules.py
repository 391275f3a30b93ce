"""The rule engine: thresholds by worked examples, and one label for any query and item."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore_lib.errors import DataError
from lore_lib.rng import generator
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.rules import judge, verdict
from lore_lib.vertical.schema import DIMENSIONS, LABELS, Demand
from lore_lib.vertical.world import World

VERTICAL = load_vertical("apparel_home")
RULED = ("category", "brand", "audience", "price", "material", "color", "style")


def level(want: tuple[str, str], item: dict[str, str], rules: bool = True, negated: bool = False) -> int:
    dimension, value = want
    return verdict(VERTICAL, Demand(dimension, value, value, negated), item, rules).level


@pytest.mark.parametrize(
    ("price", "expected"),
    [("20", 4), ("40", 4), ("40.01", 3), ("41", 3), ("44", 3), ("44.01", 2), ("45", 2), ("90", 2)],
)
def test_a_price_is_near_up_to_ten_percent_over_the_limit(price: str, expected: int) -> None:
    assert level(("price", "40"), {"price": price}) == expected


@pytest.mark.parametrize("limit", VERTICAL.price_limits)
def test_the_price_tolerance_is_inclusive_at_every_limit(limit: int) -> None:
    edge = limit * 11 // 10
    assert edge * 10 == limit * 11
    assert level(("price", str(limit)), {"price": str(edge)}) == 3
    assert level(("price", str(limit)), {"price": str(edge + 1)}) == 2


@pytest.mark.parametrize(
    ("share", "expected"), [("100", 4), ("95", 4), ("94", 3), ("90", 3), ("89", 2), ("40", 2)]
)
def test_pure_cotton_is_met_from_95_and_near_from_90_percent(share: str, expected: int) -> None:
    assert level(("material", "pure cotton"), {"material": "cotton", "material_share": share}) == expected


@pytest.mark.parametrize(("share", "expected"), [("100", 4), ("60", 4), ("50", 4), ("49", 2), ("40", 2)])
def test_cotton_alone_needs_half(share: str, expected: int) -> None:
    assert level(("material", "cotton"), {"material": "cotton", "material_share": share}) == expected


@pytest.mark.parametrize(
    ("want", "item", "expected"),
    [
        (("color", "navy"), {"color": "navy"}, 4),
        (("color", "navy"), {"color": "cobalt"}, 3),  # a shade of the same family
        (("color", "navy"), {"color": "crimson"}, 2),
        (("color", "blue"), {"color": "navy"}, 4),  # the family admits each of its shades
        (("color", "blue"), {"color": "crimson"}, 2),
        (("color", "navy"), {}, 3),
        (("category", "dress"), {"category": "dress"}, 4),
        (("category", "dress"), {"category": "gown"}, 3),
        (("category", "gown"), {"category": "dress"}, 3),  # near is symmetric
        (("category", "dress"), {"category": "skirt"}, 2),  # of the same group
        (("category", "dress"), {"category": "sheet"}, 1),
        (("category", "pillow"), {"category": "cushion"}, 3),  # near across groups
        (("category", "pillow"), {"category": "curtain"}, 1),
        (("brand", "Aurelo"), {"brand": "Aurelo"}, 4),
        (("brand", "Aurelo"), {"brand": "Relo"}, 3),  # asked for the parent, the sub-brand is near
        (("brand", "Relo"), {"brand": "Aurelo"}, 2),  # asked for the sub-brand, the parent is not
        (("brand", "Aurelo"), {"brand": "Borvik"}, 2),
        (("brand", "Aurelo"), {}, 3),
        (("audience", "women"), {"audience": "women"}, 4),
        (("audience", "women"), {"audience": "unisex"}, 4),
        (("audience", "teens"), {"audience": "unisex"}, 4),
        (("audience", "kids"), {"audience": "unisex"}, 2),
        (("audience", "kids"), {"audience": "baby"}, 3),
        (("audience", "baby"), {"audience": "teens"}, 2),
        (("audience", "women"), {"audience": "men"}, 2),
        (("audience", "women"), {}, 3),
        (("style", "vintage"), {"style": "vintage"}, 4),
        (("style", "vintage"), {"style": "sporty"}, 2),
        (("style", "vintage"), {}, 3),
        (("material", "linen"), {"material": "linen"}, 4),
        (("material", "linen"), {"material": "ramie"}, 3),
        (("material", "linen"), {"material": "silk"}, 2),
        (("material", "linen"), {"material": "cotton", "material_share": "40"}, 2),
        (("material", "pure cotton"), {"material": "linen"}, 2),
        (("material", "cotton"), {}, 3),
        (("price", "40"), {}, 3),
    ],
    ids=str,
)
def test_one_demand_worked_by_hand(want: tuple[str, str], item: dict[str, str], expected: int) -> None:
    assert level(want, item) == expected


@pytest.mark.parametrize(
    ("want", "item", "expected"),
    [
        (("color", "blue"), {"color": "navy"}, 2),  # not blue: any blue breaks it
        (("color", "blue"), {"color": "crimson"}, 4),
        (("material", "leather"), {"material": "leather"}, 2),
        (("material", "leather"), {"material": "suede"}, 4),  # near is not met, so the negation holds
        (("material", "leather"), {}, 4),
        (("brand", "Aurelo"), {"brand": "Aurelo"}, 2),
        (("brand", "Aurelo"), {"brand": "Relo"}, 4),
    ],
    ids=str,
)
def test_a_negation_conflicts_where_the_plain_demand_is_met(
    want: tuple[str, str], item: dict[str, str], expected: int
) -> None:
    assert level(want, item, negated=True) == expected


@pytest.mark.parametrize(
    ("want", "item", "with_rules", "everyday"),
    [
        (("color", "navy"), {"color": "cobalt"}, 3, 4),
        (("category", "dress"), {"category": "gown"}, 3, 4),
        (("material", "pure cotton"), {"material": "cotton", "material_share": "80"}, 2, 4),
        (("material", "linen"), {"material": "ramie"}, 3, 2),
        (("brand", "Aurelo"), {"brand": "Relo"}, 3, 2),
        (("audience", "kids"), {"audience": "baby"}, 3, 2),
        (("price", "40"), {"price": "43"}, 3, 2),
        (("color", "navy"), {}, 3, 3),  # not stated stays not stated
        (("brand", "Aurelo"), {}, 3, 3),
    ],
    ids=str,
)
def test_everyday_sense_knows_no_near(
    want: tuple[str, str], item: dict[str, str], with_rules: int, everyday: int
) -> None:
    assert level(want, item) == with_rules
    assert level(want, item, rules=False) == everyday


def test_the_lowest_verdict_gives_the_label_and_the_first_conflict_its_name() -> None:
    demands = [
        Demand("color", "navy", "navy"),
        Demand("price", "40", "40"),
        Demand("category", "dress", "dress"),
    ]
    truth = {"category": "gown", "color": "crimson", "price": "90"}
    result = judge(VERTICAL, demands, truth)
    assert (result.label, result.mismatch) == ("L2", "price")  # price stands before color in DIMENSIONS
    assert [step.dimension for step in result.path] == ["category", "price", "color"]
    assert [step.level for step in result.path] == [3, 2, 2]
    assert judge(VERTICAL, demands, truth | {"category": "sheet"}).mismatch == ""  # L1 names none


def test_a_query_without_demands_or_of_an_unruled_dimension_is_refused() -> None:
    with pytest.raises(DataError, match="without demands"):
        judge(VERTICAL, [], {})
    with pytest.raises(DataError, match=r"no rule for dimension 'season'.*category"):
        verdict(VERTICAL, Demand("season", "summer", "summer"), {})


def demand_of(vertical: Vertical) -> st.SearchStrategy[Demand]:
    by_dimension = [
        st.builds(Demand, st.just(name), st.sampled_from(vertical.values(name)), st.just("x"), st.booleans())
        for name in RULED
    ]
    return st.one_of(by_dimension)


def item_of(vertical: Vertical) -> st.SearchStrategy[dict[str, str]]:
    values: dict[str, st.SearchStrategy[str]] = {
        "category": st.sampled_from(list(vertical.group_of)),
        "brand": st.sampled_from(list(vertical.brands)),
        "audience": st.sampled_from(list(vertical.audiences)),
        "price": st.integers(1, 200).map(str),
        "material": st.sampled_from(list(vertical.materials)),
        "material_share": st.integers(0, 100).map(str),
        "color": st.sampled_from(list(vertical.shades)),
        "style": st.sampled_from(vertical.styles),
    }
    return st.fixed_dictionaries({}, optional=values)


@given(st.lists(demand_of(VERTICAL), min_size=1, max_size=4), item_of(VERTICAL), st.booleans())
@settings(max_examples=300)
def test_any_query_and_item_get_one_label_whatever_the_order(
    demands: list[Demand], item: dict[str, str], rules: bool
) -> None:
    result = judge(VERTICAL, demands, item, rules)
    assert result.label in LABELS
    assert (result.mismatch in DIMENSIONS) == (result.label == "L2")
    assert len(result.path) == len(demands)
    assert all(judge(VERTICAL, order, item, rules) == result for order in itertools.permutations(demands))


@given(st.integers(0, 2**31), st.integers(1, 4))
@settings(max_examples=100)
def test_any_drawn_query_and_item_get_one_label(seed: int, wanted: int) -> None:
    world = World(VERTICAL)
    rng = generator(seed, "rules")
    query = world.draw_query(rng)
    item = world.draw_item(query, wanted, rng)
    result = judge(VERTICAL, query.demands, item.truth)
    assert result.label in LABELS
    shuffled = [query.demands[i] for i in np.random.default_rng(seed).permutation(len(query.demands))]
    assert judge(VERTICAL, shuffled, item.truth) == result
    again = generator(seed, "rules")
    repeated = world.draw_query(again)
    assert repeated == query
    assert world.draw_item(repeated, wanted, again) == item
