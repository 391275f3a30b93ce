"""Reading a vertical's YAML: each mistake is named, and all of them at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lore_lib.artifacts import project_root
from lore_lib.errors import DataError
from lore_lib.vertical.definition import Vertical, load_vertical, read_vertical

BUNDLED = "data/verticals/apparel_home/vertical.yaml"


@pytest.fixture
def fields() -> dict[str, Any]:
    """The bundled file as plain data, to be broken."""
    return dict(yaml.safe_load((project_root() / BUNDLED).read_text(encoding="utf-8")))


def problems_of(fields: object, folder: Path) -> str:
    path = folder / "vertical.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_vertical(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_bundled_vertical_loads_and_is_frozen(vertical: Vertical) -> None:
    assert vertical.name == "apparel_home"
    assert vertical.industry_of["sheet"] == "home"
    assert vertical.family_of["navy"] == "blue"
    assert vertical.family_of["blue"] == "blue"
    with pytest.raises(ValueError, match="frozen"):
        vertical.title = "x"


def test_no_word_of_the_vertical_stands_in_two_vocabularies(vertical: Vertical) -> None:
    dimensions = ("category", "color", "material", "audience", "brand", "style")
    words = [word for name in dimensions for word in vertical.values(name)] + list(vertical.lexicon)
    assert len(words) == len(set(words))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no vertical 'aparel_home'.*did you mean 'apparel_home'"):
        load_vertical("aparel_home")


@pytest.mark.parametrize(
    "content", [b"colors: {navy: [1, 2", b"\tname: x", b"name: \xff\xfe"], ids=["open", "tab", "bytes"]
)
def test_malformed_yaml_is_named_with_its_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vertical.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"vertical\.yaml: not valid YAML in UTF-8"):
        read_vertical(path)


@pytest.mark.parametrize("content", [None, [], "name", 3], ids=repr)
def test_yaml_that_is_no_mapping_is_refused(content: object, tmp_path: Path) -> None:
    assert "1 problem(s): file:" in problems_of(content, tmp_path)


def test_every_wrong_field_is_listed_in_one_error(fields: dict[str, Any], tmp_path: Path) -> None:
    del fields["styles"]
    fields |= {"flavours": ["mint"], "price_tolerance": "a tenth", "blend_share": 0.5}
    fields["lexicon"]["klein"] = {"intent": "XX", "means": {"color": "cobalt"}}
    fields["lexicon"]["latte"] = {"intent": "DJ", "means": {"colour": "camel"}}
    fields["lexicon"]["flax"] = {"intent": "DJ", "means": {"material": "linen", "color": "tan"}}
    said = problems_of(fields, tmp_path)
    assert "7 problem(s)" in said
    for part in (
        "styles: Field required",
        "flavours: Extra inputs",
        "price_tolerance:",
        "blend_share:",
        "lexicon.klein: Value error, intent 'XX' is not one of plain",
        "unknown dimension 'colour'; did you mean 'color'?",
        "exactly one dimension: value, found 2",
    ):
        assert part in said


def test_every_contradiction_is_listed_in_one_error(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["colors"]["red"]["navy"] = [16, 24, 88]
    fields["colors"]["red"]["crimson"] = [196, 16, 460]
    fields["groups"]["tops"].append("dress")
    fields["groups"]["hats"] = ["cap"]
    fields["near_categories"].append(["dress", "gwon"])
    fields["materials"]["linen"] = "rami"
    fields["brands"]["Relo"] = "Aurela"
    fields["audiences"]["kids"] = ["tens"]
    fields["unisex_fits"] = ["woman"]
    fields["lexicon"]["matcha"]["means"] = {"color": "mintt"}
    said = problems_of(fields, tmp_path)
    for part in (
        "colors: 'navy' stands in two places",
        "'crimson' is (196, 16, 460); RGB channels run from 0 to 255",
        "groups: 'dress' stands in two places",
        "group 'hats' must stand in both 'groups' and 'industries'",
        "near_categories: unknown category 'gwon'",
        "materials.linen: unknown kin 'rami'",
        "brands.Relo: unknown parent 'Aurela'",
        "unknown audience 'tens'; did you mean 'teens'?",
        "unknown audience 'woman'; did you mean 'women'?",
        "lexicon.matcha: color 'mintt' is unknown; did you mean 'mint'?",
    ):
        assert part in said
