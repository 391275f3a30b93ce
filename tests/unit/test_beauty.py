"""The vertical beauty_care needs other knowledge: ingredients, substitutes, skin types, volumes, routines."""

import pytest

from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.teacher import STAGES, SymbolicTeacher
from lore_lib.features.build import caption_items
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.rules import judge, verdict
from lore_lib.vertical.schema import Demand, load_demands
from lore_lib.vertical.world import generate_tables


@pytest.fixture(scope="module")
def beauty() -> Vertical:
    return load_vertical("beauty_care")


@pytest.mark.parametrize(
    ("asked", "found", "rule", "level"),
    [
        (("material", "retinol"), "retinol+squalane", "material.contains", 4),
        (("material", "retinol"), "squalane+ceramide", "material.other", 2),
        (("audience", "dry"), "all-skin", "audience.same", 4),
        (("audience", "dry"), "oily", "audience.other", 2),
        (("specification", "50ml"), "50ml", "specification.same", 4),
        (("specification", "50ml"), "55ml", "specification.near", 3),
        (("specification", "50ml"), "60ml", "specification.wrong", 2),
        (("specification", "50ml"), "150ml", "specification.multiple", 3),
        (("specification", "50ml"), "5ml", "specification.sample", 3),
        (("style_detail", "spf15"), "spf30", "style_detail.grade", 3),
        (("style_detail", "spf15"), "spf50", "style_detail.grades", 2),
        (("special", "fragrance-free"), "vegan+fragrance-free", "special.stated", 4),
        (("special", "fragrance-free"), "vegan", "special.silent", 3),
        (("special", "fragrance-free"), "scented", "special.contradicted", 2),
        (("special", "organic"), "vegan", "special.unproven", 2),
        (("function", "soothing"), None, "function.not_stated", 2),
        (("bundle", "serum+cream"), "toner+serum+cream", "bundle.extra", 3),
        (("bundle", "serum+cream"), "serum", "bundle.single", 2),
        (("color", "mauve"), "grape", "color.shade", 3),
    ],
    ids=str,
)
def test_one_demand_worked_by_hand(
    beauty: Vertical, asked: tuple[str, str], found: str | None, rule: str, level: int
) -> None:
    dimension, value = asked
    step = verdict(beauty, Demand(dimension, value, value), {dimension: found} if found else {})
    assert (step.rule, step.level) == (rule, level)


@pytest.mark.parametrize(
    ("found", "level"), [("Kirei", 4), ("Ozea", 3), ("Petalis", 3), ("Glowra", 2), (None, 3)], ids=str
)
def test_a_substitute_must_be_known_as_one(beauty: Vertical, found: str | None, level: int) -> None:
    demand = Demand("brand", "Glowra", "Glowra substitute", True)
    assert verdict(beauty, demand, {"brand": found} if found else {}).level == level


@pytest.mark.parametrize(("found", "level"), [("silicone+keratin", 2), ("keratin", 4), (None, 4)], ids=str)
def test_free_of_something_is_a_negation(beauty: Vertical, found: str | None, level: int) -> None:
    demand = Demand("material", "silicone", "silicone-free", True)
    assert verdict(beauty, demand, {"material": found} if found else {}).level == level


def test_one_surface_may_hold_two_demands(beauty: Vertical) -> None:
    routine = "morning C evening A"
    demands = beauty.lexicon[routine].demands(routine)
    assert [d.value for d in demands] == ["vitamin-c", "retinol"]
    labels = {
        found: (result.label, result.mismatch)
        for found in ("vitamin-c+retinol", "retinol", "ceramide")
        for result in [judge(beauty, demands, {"material": found})]
    }
    assert labels == {
        "vitamin-c+retinol": ("L4", ""),
        "retinol": ("L2", "material"),
        "ceramide": ("L2", "material"),
    }


def test_the_teacher_understands_every_query_and_every_picture(beauty: Vertical) -> None:
    tables = generate_tables(beauty, {"train": 150}, 2, 3, 17)
    teacher = SymbolicTeacher(beauty, STAGES, KnowledgeIndex(tables["items"], tables["clicks"], 5, 3))
    nobody = {"item_id": "nobody", "title": "", "cpv": "{}", "price": 40}
    routines = 0
    for row in tables["queries"].itertuples():
        read = teacher.write(str(row.query_id), str(row.query), nobody, None)
        meant = {(d.dimension, d.value, d.negated) for d in load_demands(str(row.demands))}
        assert {(d.dimension, d.value, d.negated) for d in read.demands} == meant
        assert not read.unknown
        routines += "morning C evening A" in str(row.query)
    assert routines
    shown = caption_items(tables["items"], PixelCaptioner(beauty))
    assert all(f'"color": "{shown[row.item_id]}"' in row.truth for row in tables["items"].itertuples())
