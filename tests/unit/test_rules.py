"""The rule engine: every rule by its worked examples, thresholds by hand, one label for any pair."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lore_lib.artifacts import project_root
from lore_lib.errors import DataError
from lore_lib.rng import generator
from lore_lib.vertical.definition import Vertical, load_vertical, vertical_names
from lore_lib.vertical.kinds import RELATIONS
from lore_lib.vertical.rules import (
    ANY,
    Engine,
    Rule,
    RuleBook,
    example_problems,
    judge,
    universal_rules,
    verdict,
)
from lore_lib.vertical.schema import DIMENSIONS, LABELS, Demand
from lore_lib.vertical.world import World

VERTICAL = load_vertical("apparel_home")
SHOPS = {
    name: Vertical.model_validate(fields)
    for name, fields in yaml.safe_load(
        (project_root() / "data/rules/example_shops.yaml").read_text(encoding="utf-8")
    ).items()
}
WORLDS = [load_vertical(name) for name in vertical_names()]


def examples() -> list[Any]:
    return [
        pytest.param(rule, number, id=f"{rule.id}-{number}")
        for rule in universal_rules().rules
        for number in range(len(rule.examples))
    ]


@pytest.mark.parametrize(("rule", "number"), examples())
def test_a_worked_example_fires_its_rule(rule: Rule, number: int) -> None:
    example = rule.examples[number]
    alone = rule.model_copy(update={"examples": (example,)})
    assert list(example_problems(SHOPS[example.shop], alone)) == []


@pytest.mark.parametrize("vertical", WORLDS, ids=lambda one: one.name)
def test_the_rules_of_an_industry_fire_on_their_examples_in_its_own_vocabulary(vertical: Vertical) -> None:
    for rule in vertical.rules:
        assert list(example_problems(vertical, rule)) == []


def test_all_18_dimensions_have_universal_rules_and_every_relation_occurs() -> None:
    rules = universal_rules().rules
    assert {rule.dimension for rule in rules} == {*DIMENSIONS, ANY}
    assert set(SHOPS["boutique"].dimensions) == set(DIMENSIONS)
    assert {relation for rule in rules if rule.dimension != ANY for relation in rule.when} == set(RELATIONS)


def test_a_verdict_names_the_demand_the_evidence_the_rule_and_the_reason() -> None:
    step = verdict(
        VERTICAL, Demand("material", "pure cotton", "x"), {"material": "cotton", "material_share": "92"}
    )
    assert (step.demanded, step.found, step.level) == ("pure cotton", "cotton 92", 3)
    assert (step.rule, step.reason) == ("material.nearly_pure", "nearly pure, from 90 % on")


def rule(**fields: Any) -> Rule:
    row = {
        "id": "x",
        "dimension": "price",
        "when": "over",
        "level": 2,
        "reason": "r",
        "examples": [{"asked": "40"}],
    }
    return Rule.model_validate(row | fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dimension": "colour"}, "unknown dimension 'colour'; did you mean 'color'?"),
        ({"when": "siblings"}, "unknown relation 'siblings'; did you mean 'sibling'?"),
        ({"when": ["over", "met"]}, "unknown relation 'met'"),
        ({"dimension": ANY, "when": "met"}, "only a negated rule may hold for any dimension"),
        ({"at_most": 1, "at_least": 2}, "give one bound"),
        ({"negated": True}, "only a met demand breaks its negation; give 3 or 4"),
    ],
    ids=str,
)
def test_a_malformed_rule_is_named(fields: dict[str, Any], said: str) -> None:
    (problem,) = RuleBook((rule(**fields),)).row_problems()
    assert problem.message.startswith("rule 'x': ")
    assert said in problem.message


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([rule(at_most=10)], "0 rules without a bound for price 'over' (none)"),
        ([rule(), rule(id="y")], "2 rules without a bound for price 'over' (x, y)"),
        (
            [rule(at_most=10), rule(id="y", at_most=10), rule(id="z")],
            "the bounds for price 'over' overlap (x, y)",
        ),
        (
            [rule(at_most=10), rule(id="y", at_least=5), rule(id="z")],
            "the bounds for price 'over' overlap (y, x)",
        ),
    ],
    ids=["gap", "twice", "same", "sides"],
)
def test_bounds_leave_no_gap_and_no_overlap(rules: list[Rule], said: str) -> None:
    (gap,) = RuleBook(tuple(rules)).bounds()
    assert gap.key == ("price", "over", False)
    assert said in gap.problem.message


def test_a_relation_without_a_rule_is_named() -> None:
    kept = RuleBook(tuple(one for one in universal_rules().rules if one.id != "color.base"))
    (gap,) = kept.missing(VERTICAL.dimensions)
    assert gap.problem.path == ("color", "kind")
    assert "no rule for color 'parent'" in gap.problem.message


def test_the_universal_file_is_refused_with_the_line_of_every_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data" / "rules" / "universal.yaml"
    row = "- {id: x, dimension: color, when: same, level: 4, reason: r, examples: [{asked: red}]}\n"
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("LORE_ROOT", str(tmp_path))
    path.write_text(row + row.replace("level: 4", "level: 5, level: 4"))
    with pytest.raises(DataError) as caught:
        universal_rules.__wrapped__()
    assert str(caught.value).splitlines() == [
        f"{path}: 2 problems:",
        f"  {path}:2: [1].level: the key stands twice, on lines 2 and 2; keep one",
        f"  {path}:2: [1].level: should be 1, 2, 3 or 4 (found 5)",
    ]
    path.write_text(row + row)
    with pytest.raises(DataError, match=r": 1 problem:\n.*:2: \[1\]\.id: rule 'x' stands twice"):
        universal_rules.__wrapped__()


def level(want: tuple[str, str], item: dict[str, str], rules: bool = True, negated: bool = False) -> int:
    dimension, value = want
    return verdict(VERTICAL, Demand(dimension, value, value, negated), item, rules).level


@pytest.mark.parametrize(
    ("price", "expected"),
    [("20", 4), ("40", 4), ("40.01", 3), ("41", 3), ("44", 3), ("44.01", 2), ("45", 2), ("90", 2)],
)
def test_a_price_is_near_up_to_ten_percent_over_the_limit(price: str, expected: int) -> None:
    assert level(("price", "40"), {"price": price}) == expected


@pytest.mark.parametrize("limit", [int(limit) for limit in VERTICAL.values("price")])
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


def values_of(vertical: Vertical, dimension: str) -> st.SearchStrategy[dict[str, str]]:
    """What an item may have or claim in one dimension, sellers' nonsense included."""
    kind = vertical.dimensions[dimension]
    said = [text + share for text in (*kind.found(), *kind.demands(), "?", "a+b") for share in ("", " 15")]
    return st.sampled_from([{}, *(kind.attributes(dimension, text) for text in said)])


def demand_of(vertical: Vertical, dimension: str) -> st.SearchStrategy[Demand]:
    values = st.sampled_from(vertical.values(dimension))
    return st.builds(Demand, st.just(dimension), values, st.just("x"), st.booleans())


def pairs_of(vertical: Vertical) -> st.SearchStrategy[tuple[Vertical, list[Demand], dict[str, str]]]:
    demand = st.one_of([demand_of(vertical, dimension) for dimension in vertical.dimensions])
    item = st.tuples(*(values_of(vertical, dimension) for dimension in vertical.dimensions))
    whole = item.map(lambda parts: {key: value for part in parts for key, value in part.items()})
    return st.tuples(st.just(vertical), st.lists(demand, min_size=1, max_size=4), whole)


PAIRS = st.one_of([pairs_of(vertical) for vertical in (*WORLDS, *SHOPS.values())])


@given(PAIRS, st.booleans())
@settings(max_examples=300)
def test_any_query_and_item_get_one_label_and_one_path_whatever_the_order(
    pair: tuple[Vertical, list[Demand], dict[str, str]], rules: bool
) -> None:
    vertical, demands, item = pair
    result = judge(vertical, demands, item, rules)
    assert result.label in LABELS
    assert (result.mismatch in DIMENSIONS) == (result.label == "L2")
    assert len(result.path) == len(demands)
    assert result.label == f"L{min(step.level for step in result.path)}"
    fired = {one.id: one for one in vertical.rulebook.rules}
    assert all(fired[step.rule].reason == step.reason for step in result.path)
    assert all(judge(vertical, order, item, rules) == result for order in itertools.permutations(demands))
    uncached = Engine(vertical.name, vertical.dimensions, vertical.rulebook)
    assert uncached.judge(demands, item, rules) == result


@given(PAIRS, st.booleans())
@settings(max_examples=150)
def test_a_negation_conflicts_exactly_where_the_plain_demand_is_met(
    pair: tuple[Vertical, list[Demand], dict[str, str]], rules: bool
) -> None:
    vertical, demands, item = pair
    for demand in demands:
        plain, not_so = (
            verdict(vertical, Demand(demand.dimension, demand.value, "x", negated), item, rules).level
            for negated in (False, True)
        )
        assert (not_so == 2) == (plain == 4)
        assert not_so in (2, 3, 4)


@given(PAIRS)
@settings(max_examples=150)
def test_a_further_demand_never_raises_the_label(pair: tuple[Vertical, list[Demand], dict[str, str]]) -> None:
    vertical, demands, item = pair
    labels = [judge(vertical, demands[:count], item).label for count in range(1, len(demands) + 1)]
    assert labels == sorted(labels, reverse=True)


@pytest.mark.parametrize("vertical", WORLDS, ids=lambda one: one.name)
@given(st.integers(0, 2**31), st.integers(1, 4))
@settings(max_examples=50)
def test_any_drawn_query_and_item_get_one_label(vertical: Vertical, seed: int, wanted: int) -> None:
    world = World(vertical)
    rng = generator(seed, "rules")
    query = world.draw_query(rng)
    item = world.draw_item(query, wanted, rng)
    result = judge(vertical, query.demands, item.truth)
    assert result.label in LABELS
    shuffled = [query.demands[i] for i in np.random.default_rng(seed).permutation(len(query.demands))]
    assert judge(vertical, shuffled, item.truth) == result
    again = generator(seed, "rules")
    repeated = world.draw_query(again)
    assert repeated == query
    assert world.draw_item(repeated, wanted, again) == item
