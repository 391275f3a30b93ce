"""Reading a vertical's YAML: each mistake is named, and all of them at once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lore_lib.artifacts import project_root
from lore_lib.errors import DataError
from lore_lib.vertical import definition
from lore_lib.vertical.checking import check
from lore_lib.vertical.definition import Vertical, load_vertical, read_vertical

BUNDLED = "data/verticals/apparel_home/vertical.yaml"


@pytest.fixture(scope="module")
def bundled() -> dict[str, Any]:
    """The bundled file as plain data."""
    return dict(yaml.safe_load((project_root() / BUNDLED).read_text(encoding="utf-8")))


@pytest.fixture
def fields(bundled: dict[str, Any]) -> dict[str, Any]:
    """The bundled file as plain data, to be broken."""
    return copy.deepcopy(bundled)


def written(fields: object, folder: Path) -> Path:
    path = folder / "vertical.yaml"
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    return path


def problems_of(fields: object, folder: Path) -> str:
    path = written(fields, folder)
    with pytest.raises(DataError) as caught:
        read_vertical(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def found(fields: object, folder: Path) -> list[tuple[str, str]]:
    """Field and message of every problem."""
    problems = check(written(fields, folder), Vertical).problems
    return [(problem.field, problem.message) for problem in problems]


def test_the_bundled_vertical_loads_and_is_frozen(vertical: Vertical) -> None:
    assert vertical.name == "apparel_home"
    assert vertical.industry_of["sheet"] == "home"
    assert vertical.shades["navy"] == (16, 24, 88)
    assert vertical.values("season") == []
    with pytest.raises(ValueError, match="frozen"):
        vertical.title = "x"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no vertical 'aparel_home'.*did you mean 'apparel_home'"):
        load_vertical("aparel_home")


def test_a_vertical_carries_the_name_of_its_folder(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definition, "verticals_folder", lambda: tmp_path)
    (tmp_path / "copied").mkdir()
    written(fields, tmp_path / "copied")
    with pytest.raises(DataError, match=r"name: is 'apparel_home'.*'copied'"):
        load_vertical("copied")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"colors: {navy: [1, 2", "not YAML"),
        (b"\tname: x", "a tab indents"),
        (b"name: \xff\xfe", "not UTF-8"),
        (b"name: x\nname: y", "the key stands twice, on lines 1 and 2"),
    ],
    ids=["open", "tab", "bytes", "twice"],
)
def test_malformed_yaml_is_named_with_its_file_and_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "vertical.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"\n  {path}:[12]: .*{said}"):
        read_vertical(path)


@pytest.mark.parametrize("content", [None, [], "name", 3], ids=repr)
def test_yaml_that_is_no_mapping_is_refused(content: object, tmp_path: Path) -> None:
    assert "1 problem; more may show once these are mended:\n" in problems_of(content, tmp_path)


def test_every_wrong_field_is_listed_in_one_error(fields: dict[str, Any], tmp_path: Path) -> None:
    del fields["title"]
    fields |= {"flavours": ["mint"]}
    fields["dimensions"]["color"]["families"]["red"]["crimson"] = "red"
    fields["dimensions"]["style"]["kind"] = "sett"
    fields["world"]["slang_share"] = 1.5
    fields["rules"] = [
        {"id": "x", "dimension": "color", "when": "same", "level": 5, "reason": "r", "examples": []}
    ]
    fields["lexicon"]["klein"] = {"intent": "XX", "means": {"color": "cobalt"}}
    fields["lexicon"]["latte"] = {"intent": "DJ", "means": {"colour": "camel"}}
    fields["lexicon"]["flax"] = {"intent": "DJ", "means": {"material": "linen", "color": "tan"}}
    said = problems_of(fields, tmp_path)
    for part in (
        "title: this field is missing",
        "flavours: unknown field; known: name, title, dimensions, rules, lexicon, world",
        "dimensions.color.families.red.crimson: should be a valid tuple",
        "dimensions.style.kind: unknown kind; did you mean 'set'? (found sett)",
        "world.slang_share: should be less than or equal to 1 (found 1.5)",
        "rules[0].level: should be 1, 2, 3 or 4",
        "rules[0].examples: Tuple should have at least 1 item",
        "lexicon.klein.intent: intent 'XX' is not one of plain",
        "lexicon.latte.means.colour: unknown dimension 'colour'; did you mean 'color'?",
        "lexicon.flax.means: 'means' must hold exactly one dimension: value, found 2",
    ):
        assert part in said
    assert ": 10 problems" in said


CONTRADICTIONS: list[tuple[tuple[str | int, ...], Any, str, str]] = [
    # where, what is written there, where the problem is reported, what it says
    (("dimensions", "color", "families", "red", "navy"), [1, 2, 3],
     "dimensions.color.families.red.navy", "'navy' stands in two places; keep one"),
    (("dimensions", "color", "families", "red", "crimson"), [196, 16, 460],
     "dimensions.color.families.red.crimson", "RGB channels run from 0 to 255"),
    (("dimensions", "color", "families", "red", "blue"), [1, 2, 3],
     "dimensions.color.families.red.blue", "cyclic: 'blue' is a family and a member of 'red'"),
    (("dimensions", "category", "groups", "tops"), ["shirt", "dress"],
     "dimensions.category.groups.tops[1]", "'dress' stands in two places"),
    (("dimensions", "category", "groups", "hats"), ["cap"], "dimensions.category.groups.hats",
     "group 'hats' stands in no industry; add it to one"),
    (("dimensions", "category", "groups", "bags"), ["tops"], "dimensions.category.groups.bags[0]",
     "cyclic taxonomy: 'tops' is a value and a level above"),
    (("dimensions", "category", "industries", "tops"), [], "dimensions.category.industries.tops",
     "cyclic taxonomy: 'tops' is a group and an industry"),
    (("dimensions", "category", "industries", "home"), ["bedding", "livng"],
     "dimensions.category.industries.home[1]", "unknown group 'livng'; did you mean 'living'?"),
    (("dimensions", "category", "near", 0), ["dress", "gwon"], "dimensions.category.near[0][1]",
     "unknown value 'gwon'; did you mean 'gown'?"),
    (("dimensions", "material", "kin", "linen"), "rami", "dimensions.material.kin.linen",
     "unknown kin 'rami'; did you mean 'ramie'?"),
    (("dimensions", "material", "pure", "pure silk"), "silk", "dimensions.material.pure.pure silk",
     "'pure silk' needs 'shares' of 'silk'"),
    (("dimensions", "brand", "parents", "Relo"), "Aurela", "dimensions.brand.parents.Relo",
     "unknown parent 'Aurela'; did you mean 'Aurelo'?"),
    (("dimensions", "brand", "parents", "Aurelo"), "Relo", "dimensions.brand.parents.Relo",
     "cyclic lineage: Relo -> Aurelo -> Relo; cut it at one place"),
    (("dimensions", "audience", "general", "unisex"), ["woman"],
     "dimensions.audience.general.unisex[0]", "unknown value 'woman'; did you mean 'women'?"),
    (("dimensions", "price", "limits", 0), 500,
     "dimensions.price.limits[0]", "outside of the items' 12 to 180"),
    (("dimensions", "style", "values", 0), "a+b",
     "dimensions.style.values[0]", "holds '+', which joins values"),
    (("dimensions", "style", "values", 0), "mint",
     "dimensions.style.values[0]", "'mint' is a style and a color"),
    (("dimensions", "seasons"), {"kind": "set", "values": ["summer"]}, "dimensions.seasons",
     "unknown dimension 'seasons'; did you mean 'season'?"),
    (("dimensions", "season"), {"kind": "limit", "limits": [3], "lowest": 1, "highest": 9},
     "dimensions.season.kind", "no rule for season 'over'"),
    (("lexicon", "matcha", "means"), {"color": "mintt"}, "lexicon.matcha.means.color",
     "color 'mintt' is unknown; did you mean 'mint'?"),
    (("lexicon", "matcha", "means"), {"color": "mint+olive"}, "lexicon.matcha.means.color",
     "an item has one color; give one value"),
    (("lexicon", "mint"), {"intent": "DJ", "means": {"color": "olive"}}, "lexicon.mint",
     "'mint' is slang and a color"),
    (("world", "asks", "season"), 0.0, "world.asks.season", "unknown dimension 'season'"),
    (("world", "asks", "color"), 0.5, "world.asks", "shares sum to 1.23, not to 1"),
    (("world", "back", "price"), "under", "world.back.price", "no {} for the words of the demand"),
    (("world", "silhouettes", "bags"), [[1, 1]], "world.silhouettes.bags", "group 'bags' needs a silhouette"),
    (("world", "only"), {"style": ["topps"]},
     "world.only.style[0]", "unknown group 'topps'; did you mean"),
    (("world", "fits"), {"style": {"tops": ["sporti"]}},
     "world.fits.style.tops[0]", "unknown style 'sporti'; did you mean 'sporty'?"),
    (("world", "fits"), {"style": {"topps": ["sporty"]}}, "world.fits.style.topps", "unknown group 'topps'"),
    (("world", "fits"), {"style": {"tops": []}}, "world.fits.style.tops", "no values for group 'tops'"),
    (("world", "fits"), {"color": {"tops": ["navy"]}}, "world.fits.color", "belongs to every item"),
    (("rules",), [{"id": "price.near", "dimension": "prise", "when": "over", "level": 3, "reason": "r",
                   "examples": [{"asked": "40"}]}], "rules[0].dimension", "unknown dimension 'prise'"),
    (("rules",), [{"id": "price.far", "dimension": "price", "when": "over", "level": 2, "reason": "r",
                   "examples": [{"asked": "40"}]}], "rules[0].when",
     "2 rules without a bound for price 'over'"),
    (("rules",), [{"id": "price.near", "dimension": "price", "when": "over", "at_most": 25, "level": 3,
                   "reason": "r", "examples": [{"asked": "40", "found": "52"}]}], "rules[0].examples[0]",
     "fires 'price.over' (level 2) instead"),
]  # fmt: skip


@pytest.mark.parametrize(("at", "value", "field", "said"), CONTRADICTIONS, ids=lambda x: str(x)[:40])
def test_a_contradiction_is_named_with_its_place(
    fields: dict[str, Any], at: tuple[str | int, ...], value: Any, field: str, said: str, tmp_path: Path
) -> None:
    write(fields, at, value)
    assert [message for where, message in found(fields, tmp_path) if where == field and said in message]


def write(fields: Any, at: tuple[str | int, ...], value: Any) -> None:
    for step in at[:-1]:
        fields = fields[step]
    fields[at[-1]] = value


PICTURES: list[tuple[tuple[str, ...], Any, str]] = [
    (("world", "optional"), ["color"], "is on every picture"),
    (("dimensions", "style", "pictured"), True, "a picture shows one pattern; keep one"),
    (("dimensions", "style_detail", "several"), 2, "drop 'general' and 'several'"),
    (("dimensions", "style_detail", "values"), ["plain", "dottet"], "did you mean 'dotted'?"),
]


@pytest.mark.parametrize(("at", "value", "said"), PICTURES, ids=lambda x: str(x)[:40])
def test_what_cannot_be_drawn_is_refused(
    fields: dict[str, Any], at: tuple[str, ...], value: Any, said: str, tmp_path: Path
) -> None:
    write(fields, at, value)
    assert [message for _, message in found(fields, tmp_path) if said in message]


def test_every_contradiction_is_listed_in_one_error(fields: dict[str, Any], tmp_path: Path) -> None:
    chosen = [CONTRADICTIONS[n] for n in (0, 1, 6, 8, 9, 11, 13, 14, 19, 25)]
    for at, value, _, _ in chosen:
        write(fields, at, value)
    said = problems_of(fields, tmp_path)
    assert f": {len(chosen)} problems:" in said
    for _, _, field, message in chosen:
        assert f": {field}: " in said
        assert message in said


def test_a_malformed_word_or_rule_does_not_hide_what_is_wrong_elsewhere(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    fields["lexicon"]["klein"] = {"intent": "XX", "means": {"color": "cobalt"}}
    fields["dimensions"]["brand"]["parents"]["Relo"] = "Aurela"
    row = {
        "id": "x",
        "dimension": "price",
        "when": "ovr",
        "level": 2,
        "reason": "r",
        "examples": [{"asked": "40"}],
    }
    fields["rules"] = [{"id": "broken"}, row]
    places = {field for field, _ in found(fields, tmp_path)}
    assert places >= {"lexicon.klein.intent", "dimensions.brand.parents.Relo"}
    assert places >= {"rules[0].level", "rules[1].when"}


@pytest.mark.parametrize(
    ("name", "dimension", "said"),
    [
        ("category", {"kind": "set", "values": ["dress"]}, "every vertical needs dimension 'category'"),
        ("price", {"kind": "set", "values": ["cheap"]}, "a world needs dimension 'price' of kind 'limit'"),
        ("color", {"kind": "set", "values": ["navy"]}, "a world needs dimension 'color' of kind 'family'"),
    ],
)
def test_a_needed_dimension_of_another_kind_is_named(
    fields: dict[str, Any], name: str, dimension: dict[str, Any], said: str, tmp_path: Path
) -> None:
    fields["dimensions"][name] = dimension
    assert [message for where, message in found(fields, tmp_path) if said in message]


def test_an_unknown_dimension_is_one_problem(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["dimensions"]["seasons"] = {"kind": "set", "values": ["summer"]}
    assert found(fields, tmp_path) == [
        ("dimensions.seasons", "unknown dimension 'seasons'; did you mean 'season'?")
    ]


def test_a_sound_vertical_has_no_problems(fields: dict[str, Any], tmp_path: Path) -> None:
    assert found(fields, tmp_path) == []


def row(name: str, dimension: str, when: str, **more: Any) -> dict[str, Any]:
    """A rule as the file has it."""
    told = {"level": 3, "reason": "r", "examples": [{"asked": "40", "found": "41"}]}
    return {"id": name, "dimension": dimension, "when": when} | told | more


SEASON = {"kind": "limit", "limits": [3], "lowest": 1, "highest": 9}
"""A kind for which no universal rule of the season exists: "over" and "within" have to be added."""


def test_a_malformed_rule_holds_back_only_what_would_follow_from_it(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    fields["dimensions"]["season"] = SEASON
    fields["rules"] = [
        row("style.odd", "styel", "same"),  # may be meant for "same" of any dimension
        row("season.over", "season", "ovr"),  # may be meant for any relation of the season
        row("price.far", "price", "over", examples=[{"asked": "40", "found": "50"}]),
        row("brand.same", "brand", "same", at_most=3, examples=[{"asked": "Aurelo", "found": "Aurelo"}]),
        row("material.near", "material", "near", at_most=1, examples=[{"asked": "silk", "found": "linen"}]),
    ]
    assert found(fields, tmp_path) == [
        ("rules[0].dimension", "rule 'style.odd': unknown dimension 'styel'; did you mean 'style'?"),
        ("rules[1].when", "rule 'season.over': unknown relation 'ovr'; did you mean 'over'?"),
        ("rules[2].when", "2 rules without a bound for price 'over' (price.over, price.far); "
         "there must be exactly one, which takes the rest"),
        ("rules[4].examples[0]", "rule 'material.near': asked 'silk', found 'linen' fires 'material.other' "
         "(level 2) instead; correct the example or the rule"),
    ]  # fmt: skip
    assert not check(tmp_path / "vertical.yaml", Vertical).complete


def test_a_missing_rule_does_not_hide_a_wrong_example(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["dimensions"]["season"] = SEASON
    fields["rules"] = [
        row("season.over", "season", "over", examples=[{"asked": "3", "found": "2"}, {"asked": "3"}])
    ]
    told = [(place, message.partition(" (")[0]) for place, message in found(fields, tmp_path)]
    assert told == [
        ("dimensions.season.kind", "no rule for season 'within'"),
        ("rules[0].examples[1]", "rule 'season.over': asked '3', found 'none' fires 'season.not_stated'"),
    ]


def test_a_rule_that_stands_twice_is_one_problem(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["rules"] = [row("price.near", "price", "over", at_most=25, level=level) for level in (3, 4)]
    (problem,) = found(fields, tmp_path)
    assert problem == ("rules[1].id", "rule 'price.near' stands twice; rename or drop one")
