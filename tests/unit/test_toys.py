"""The vertical toys_digital asks what the others do not: model, character, shop, part or device, year."""

import json

import pandas as pd
import pytest

from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.teacher import STAGES, SymbolicTeacher
from lore_lib.vertical.definition import Vertical, load_vertical, vertical_names
from lore_lib.vertical.rules import judge, verdict
from lore_lib.vertical.schema import DIMENSIONS, Demand, load_demands
from lore_lib.vertical.world import generate_tables

Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def toys() -> Vertical:
    return load_vertical("toys_digital")


@pytest.fixture(scope="module")
def toy_tables(toys: Vertical) -> Tables:
    """A small world of it; treat it as read-only."""
    return generate_tables(toys, {"train": 150}, 4, 2, 17)


def test_the_bundled_worlds_ask_all_18_dimensions_between_them() -> None:
    worlds = [load_vertical(name).world for name in vertical_names()]
    asked = {name for world in worlds if world is not None for name in world.asks}
    assert asked | {"category"} == set(DIMENSIONS)


@pytest.mark.parametrize(
    ("asked", "found", "rule", "level"),
    [
        (("model", "Nimbus"), "Nimbus-Max", "model.same", 4),
        (("model", "Kestrel 3"), "Kestrel 3", "model.same", 4),
        (("model", "Kestrel 3"), "Kestrel 2", "model.trim", 3),
        (("model", "Kestrel 3"), "Vela-Pro", "model.other", 2),
        (("ip", "Moonpup"), "Dinorok", "ip.other", 2),
        (("ip", "Moonpup"), None, "ip.none", 2),
        (("store", "Orvana official"), "Orvana authorised", "store.authorised", 3),
        (("store", "Orvana official"), "Kelpo official", "store.other", 2),
        (("store", "Orvana official"), "Giggle-Loft", "store.other_trade", 1),
        (("component", "phone-unit"), "phone-part", "component.accessory", 2),
        (("component", "phone-part"), "phone-unit", "component.main", 1),
        (("component", "phone-part"), "watch-part", "component.unfit", 1),
        (("year", "2024"), "2023", "year.wrong", 2),
        (("specification", "256gb"), "240gb", "specification.near", 3),
        (("specification", "128gb"), "512gb", "specification.multiple", 3),
    ],
    ids=str,
)
def test_one_demand_worked_by_hand(
    toys: Vertical, asked: tuple[str, str], found: str | None, rule: str, level: int
) -> None:
    dimension, value = asked
    item = toys.dimensions[dimension].attributes(dimension, found) if found else {}
    step = verdict(toys, Demand(dimension, value, value), item)
    assert (step.rule, step.level) == (rule, level)


def test_an_unrelated_item_may_fail_by_another_dimension_than_the_category(
    toys: Vertical, toy_tables: Tables
) -> None:
    decided = [
        [step["dimension"] for step in json.loads(path) if step["level"] == 1]
        for path in toy_tables["pairs"].query("label == 'L1'").path
    ]
    assert {dimension for dimensions in decided for dimension in dimensions} == {
        "category",
        "store",
        "component",
    }
    assert 0 < sum("category" not in dimensions for dimensions in decided) < len(decided) / 2


def test_a_part_fits_what_its_group_says(toys: Vertical, toy_tables: Tables) -> None:
    assert toys.world
    fits, seen = toys.world.fits["component"], set()
    for text in toy_tables["items"].truth:
        truth = json.loads(text)
        group = toys.group_of[truth["category"]]
        part = truth.get("component")
        assert part is None or part in fits[group]
        seen.add(group if part else "")
    assert set(fits) < seen
    for text in toy_tables["queries"].demands:
        category, *rest = load_demands(text)
        asked = [demand.value for demand in rest if demand.dimension == "component"]
        assert set(asked) <= set(fits.get(toys.group_of[category.value], ()))


def test_an_item_is_sold_in_the_shop_that_is_its_store(toy_tables: Tables) -> None:
    stores = toy_tables["items"].truth.map(lambda text: json.loads(text).get("store"))
    assert stores.notna().sum() > 100
    assert (toy_tables["items"].shop[stores.notna()] == stores.dropna()).all()


def test_the_teacher_understands_every_query_and_reads_every_attribute(
    toys: Vertical, toy_tables: Tables
) -> None:
    index = KnowledgeIndex(toy_tables["items"], toy_tables["clicks"], 5, 3)
    teacher = SymbolicTeacher(toys, STAGES, index)
    nobody = {"item_id": "nobody", "title": "", "cpv": "{}", "price": 40}
    for row in toy_tables["queries"].itertuples():
        read = teacher.write(str(row.query_id), str(row.query), nobody, None)
        meant = {(d.dimension, d.value, d.negated) for d in load_demands(str(row.demands))}
        assert {(d.dimension, d.value, d.negated) for d in read.demands} == meant
        assert not read.unknown
    for item in toy_tables["items"].to_dict("records"):
        truth = json.loads(item["truth"])
        stated = teacher.read_item(item)
        assert {name: stated.get(name) for name in truth if name != "color"} == {
            name: value for name, value in truth.items() if name != "color"
        }


def test_the_label_is_unrelated_when_the_part_fits_nothing_asked(toys: Vertical) -> None:
    demands = (Demand("category", "charger", "charger"), Demand("component", "watch-part", "watch-part"))
    result = judge(toys, demands, {"category": "charger", "component": "phone-part"})
    assert (result.label, result.mismatch) == ("L1", "")
