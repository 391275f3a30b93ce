"""Templates: the bundled ones are sound, and a wrong file is told what is wrong, by slot and all at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lore_lib.completion import parse
from lore_lib.errors import ConfigError
from lore_lib.features import template as module
from lore_lib.features.prompts import BUDGETS, render_prompt
from lore_lib.features.template import load_template, read_template
from lore_lib.vertical.schema import DIMENSIONS, LABELS

BUNDLED = ("en", "nano", "zh")
SECTIONS = {"title": "navy dress", "cpv": ("color navy", "fit loose"), "price": "40"}


def bundled(name: str) -> dict[str, Any]:
    text = (Path(module.__file__).parent / "templates" / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def test_every_bundled_template_is_named_as_its_file_and_has_all_budgets() -> None:
    for name in BUNDLED:
        assert load_template(name).name == name
        limits = [load_template(name).budgets[budget].tokens for budget in ("short", "mid", "full")]
        assert limits == sorted(set(limits))
    assert list(BUDGETS) == ["short", "mid", "full"]
    assert load_template("en").budgets["mid"].tokens == 800  # the paper's choice


@pytest.mark.parametrize("name", ["en", "zh"])
def test_an_instruction_explains_levels_dimensions_and_an_answer_that_the_grammar_reads(name: str) -> None:
    prompt = render_prompt("dress", SECTIONS, "mid", template=load_template(name), rules=["first", "second"])
    assert all(f"\n{label}: " in prompt for label in LABELS)
    assert all(title in prompt for title in DIMENSIONS.values())
    assert "\n- first\n- second\n" in prompt
    assert "color navy; fit loose" in prompt
    answer = parse(prompt[prompt.index("<think>") :])
    assert (answer.kind, answer.label, answer.mismatch) == ("ok", "L2", "color")
    assert not set("{}") & set(prompt)


@pytest.mark.parametrize("name", BUNDLED)
def test_without_rules_their_block_goes(name: str) -> None:
    template = load_template(name)
    plain = render_prompt("dress", SECTIONS, "mid", template=template)
    ruled = render_prompt("dress", SECTIONS, "mid", template=template, rules=["a rule"])
    block = template.sections["rules"].head + "a rule"
    assert ruled.replace(template.separator + block, "", 1) == plain
    assert "\n\n\n" not in plain + ruled
    assert plain == plain.strip()


def test_a_language_changes_the_words_and_not_what_is_said() -> None:
    english, chinese = load_template("en"), load_template("zh")
    assert english.budgets == chinese.budgets
    assert list(english.sections) == list(chinese.sections)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"blocks": ["{pair}", "{rules}", "{levels}", "{shop}"]}, r"blocks: unknown slot \{shop\}"),
        ({"blocks": ["{pair}", "{rules}"]}, r"blocks: missing slot \{levels\}"),
        ({"blocks": ["{rules}", "{levels}"]}, r"blocks: missing slot \{pair\}"),
        ({"blocks": ["{pair}", "{levels}"]}, r"blocks: missing slot \{rules\}"),
        ({"blocks": ["{pair}\n{rules}", "{levels}"]}, r"slot \{rules\} must be a block of its own"),
        ({"blocks": ["{pair}{pair}", "{rules}", "{levels}"]}, r"slot \{pair\} stands 2 times"),
        ({"levels": {"L1": "x", "L5": "y"}}, "levels: explain exactly L1, L2, L3, L4; found L1, L5"),
        ({"sections.title.line": "Title: "}, r"sections.title.line: missing slot \{value\}"),
        ({"sections.title.line": "{name}: {value}"}, r"title.line: unknown slot \{name\}; use \{value\}"),
        ({"sections.cpv.join": ","}, "sections.cpv.join: ',' must end in a blank"),
        ({"sections.colour": {"line": "c: {value}"}}, "sections: unknown 'colour'"),
        ({"sections.sku": None}, "sections: missing 'sku'"),
        ({"budgets.mid.sections": ["titel"]}, r"mid.sections: unknown 'titel'; did you mean 'title'\?"),
        ({"budgets.mid.tokens": 0}, "budgets.mid.tokens: Input should be greater than or equal to 1"),
        ({"budgets.mid": None}, "budgets: missing 'mid'"),
        ({"version": None}, "version: Field required"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_named_with_its_file_and_slot(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    tree = bundled("en")
    for dotted, value in change.items():
        *parents, last = dotted.split(".")
        place = tree
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{says}"):
        read_template(path)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    tree = bundled("nano") | {"blocks": ["{pairs}"]}
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_template(path)
    assert [part in str(error.value) for part in ("unknown slot {pairs}", "slot {pair}", "slot {rules}")] == [
        True
    ] * 3


@pytest.mark.parametrize(
    "content", [b"a: [", b"\xff\xfe", b"!!python/object/apply:os.getcwd []", b"- a", b""]
)
def test_a_file_that_is_no_template_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"template .*mine\.yaml"):
        read_template(path)
    with pytest.raises(ConfigError, match="absent"):
        read_template(tmp_path / "absent.yaml")


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no template 'jp'; known: en, nano, zh"):
        load_template("jp")
