"""Budgets: whole values only, what the query asks for first, never over the limit."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lore_lib.errors import DataError
from lore_lib.features.packing import Packer, token_counter, words
from lore_lib.features.prompts import neutralise, render_prompt
from lore_lib.features.template import Template, load_template
from lore_lib.sampling.engine import load_tokenizer


def count_words(texts: list[str]) -> list[int]:
    """A counter whose sums can be done by hand: one token a word, line breaks for nothing."""
    return [len(text.split()) for text in texts]


def limited(tokens: int, name: str = "nano") -> Template:
    """A template whose budget ``full`` has this many tokens."""
    template = load_template(name)
    full = template.budgets["full"].model_copy(update={"tokens": tokens})
    return template.model_copy(update={"budgets": {**template.budgets, "full": full}})


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model))


ITEM = {
    "title": ("Relo dress",),
    "cpv": ("brand Relo", "material linen", "color navy"),
    "sku": ("red S", "red M", "red L"),
    "price": ("40",),
}
SIZE = 2 + 3 + 7 + 7 + 2  # "query: red", "title: Relo dress", and so on, by words


def pack(query: str, tokens: int, rules: tuple[str, ...] = ()) -> tuple[str, dict[str, int]]:
    packer = Packer(limited(tokens), "full", count=count_words)
    [packed] = packer.pack([(0, 0)], [query], [ITEM], [rules])
    return packed.prompt, packed.dropped


def test_a_budget_that_holds_everything_drops_nothing() -> None:
    prompt, dropped = pack("red", SIZE)
    assert count_words([prompt]) == [SIZE]
    assert prompt.endswith("cpv: brand Relo, material linen, color navy\nsku: red S red M red L\nprice: 40")
    assert not dropped
    assert pack("red", SIZE - 1)[1] == {"sku": 1}


def test_what_the_query_asks_for_stays_and_repeats_of_it_do_not_push_others_out() -> None:
    prompt, dropped = pack("red linen", 3 + 3 + 3 + 3)
    assert prompt == "query: red linen\ntitle: Relo dress\ncpv: material linen\nsku: red S"
    assert dropped == {"cpv": 2, "sku": 2, "price": 1}


def test_where_nothing_is_asked_the_priority_of_the_sections_decides() -> None:
    prompt, dropped = pack("gift", 2 + 3 + 2 + 3)
    assert prompt == "query: gift\ntitle: Relo dress\ncpv: brand Relo\nprice: 40"
    assert dropped == {"cpv": 2, "sku": 3}


def test_rules_come_in_last_and_whole() -> None:
    rules = ("linen holds ramie", "navy is blue")
    assert pack("red", SIZE + 7, rules)[0].endswith("\nprice: 40\nrules: linen holds ramie; navy is blue")
    prompt, dropped = pack("red", SIZE + 6, rules)
    assert prompt.endswith("\nprice: 40\nrules: linen holds ramie")
    assert dropped == {"rules": 1}
    assert "rules" not in pack("red", SIZE, rules)[0]


def test_a_title_too_long_is_left_out_and_counted() -> None:
    packer = Packer(limited(20), "full", count=count_words)
    [packed] = packer.pack([(0, 0)], ["red"], [{"title": "x " * 500_000, "price": "40"}])
    assert packed == ("query: red\nprice: 40", {"title": 1})


def test_a_query_too_long_is_refused_with_the_numbers() -> None:
    packer = Packer(limited(5), "full", count=count_words)
    with pytest.raises(
        DataError, match=r"1 queries do not fit budget 'full' of template 'nano' \(5 tokens\)"
    ) as error:
        packer.pack([(0, 0)], ["red", "a b c d e f"], [ITEM])
    assert "'a b c d e f' is 2 tokens too long" in str(error.value)


def test_the_counter_is_asked_once_for_distinct_texts() -> None:
    asked: list[list[str]] = []

    def counter(texts: list[str]) -> list[int]:
        asked.append(texts)
        return count_words(texts)

    packer = Packer(load_template("nano"), "full", count=counter)
    asked.clear()
    packer.pack([(q, i) for q in range(2) for i in range(50)], ["red", "navy"], [ITEM] * 50)
    assert len(asked) == 1
    assert len(asked[0]) == len(set(asked[0])) == 2 + 8


def test_tokens_are_counted_as_the_tokenizer_does_whatever_it_did_before(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = ["query: navy dress", "title: a much longer one, in 3 parts", "", "纯棉 连衣裙 <|im_end|>"]
    counted = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    tokenizer(texts, padding=True, truncation=True, max_length=3)
    assert token_counter(tokenizer)(texts) == counted
    assert len(set(counted)) == 4


def test_words_ignore_case_and_pair_up_chinese_characters() -> None:
    assert words("Größe-40, NAVY") == {"grösse", "40", "navy"}  # casefold
    assert words("红色 dress 裙") == {"红色", "dress", "裙"}


TEXTS = st.text(max_size=30).map(neutralise).filter(bool)
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "title": st.tuples(TEXTS),
        "cpv": st.lists(TEXTS, min_size=1, max_size=6),
        "sku": st.lists(TEXTS, min_size=1, max_size=6),
        "selling_points": st.lists(TEXTS, min_size=1, max_size=3),
        "picture": st.tuples(TEXTS),
    },
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=TEXTS, sections=SECTIONS, rules=st.lists(TEXTS, max_size=3), spare=st.integers(0, 80),
    name=st.sampled_from(["nano", "en", "zh"]),
)  # fmt: skip
def test_a_packed_prompt_fits_holds_whole_values_and_counts_the_rest(
    query: str, sections: dict[str, list[str]], rules: list[str], spare: int, name: str,
    tokenizer: PreTrainedTokenizerBase,
) -> None:  # fmt: skip
    count = token_counter(tokenizer)
    limit = count([render_prompt(query, {}, "full", template=load_template(name))])[0] + 4 + spare
    template = limited(limit, name)
    [packed] = Packer(template, "full", count=count).pack([(0, 0)], [query], [sections], [rules])
    assert count([packed.prompt])[0] <= limit
    assert packed == Packer(template, "full", count=count).pack([(0, 0)], [query], [sections], [rules])[0]

    given_values = {**sections, "rules": rules}
    kept = {
        section: len(values) - packed.dropped.get(section, 0)
        for section, values in given_values.items()
        if values
    }
    assert all(left >= 0 for left in kept.values())
    lines = packed.prompt.split("\n")
    for section in set(sections) & {"title", "picture"}:
        whole = template.sections[section].head + sections[section][0]
        assert (whole in lines) == bool(kept[section])
    everything = render_prompt(query, sections, "full", template=load_template(name), rules=rules)
    assert (packed.prompt == everything) == (not packed.dropped)


def test_a_budget_of_the_paper_is_used_well_and_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    sections = {"title": "navy dress", "cpv": [f"attribute{i} value {i}" for i in range(400)]}
    template = load_template("en").model_copy(update={"budgets": limited(1500, "en").budgets})
    prompt = render_prompt("navy dress", sections, "full", template=template, tokenizer=tokenizer)
    assert 1450 < token_counter(tokenizer)([prompt])[0] <= 1500


def test_the_limit_of_a_budget_only_counts_with_a_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    many = {"title": "navy dress", "cpv": [f"attribute{i} value" for i in range(400)]}
    free: Callable[..., str] = render_prompt
    assert free("navy", many).count("value") == 400
    assert free("navy", many, tokenizer=tokenizer).count("value") < 100
