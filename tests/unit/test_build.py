"""Prompts of whole tables: in chunks or at once, counted or not, they are those of each pair alone."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lore_lib.errors import DataError
from lore_lib.features import build
from lore_lib.features.build import PROMPT_COLUMNS, build_prompts, count_dropped, stream_prompts
from lore_lib.features.packing import token_counter
from lore_lib.features.prompts import BUDGETS, item_sections, render_prompt
from lore_lib.features.template import load_template
from lore_lib.sampling.engine import load_tokenizer
from lore_lib.vertical.definition import load_vertical, vertical_names
from lore_lib.vertical.world import generate_tables

Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module", params=vertical_names())
def bundled(request: pytest.FixtureRequest) -> tuple[Tables, "pd.Series[Any]"]:
    """A small world of each bundled vertical; the captions are the true colours."""
    tables = generate_tables(load_vertical(request.param), {"train": 100}, 4, 0, 17)
    colours = tables["items"].truth.map(lambda text: json.loads(text)["color"])
    return tables, pd.Series(colours.to_numpy(), index=tables["items"].item_id.to_numpy(), dtype=object)


@pytest.mark.parametrize("budget", list(BUDGETS))
def test_lore_nanos_prompts_fit_their_budgets_whole(
    budget: str, root: Path, bundled: tuple[Tables, "pd.Series[Any]"]
) -> None:
    """So counting their tokens, as the notebooks do, changes no byte."""
    tokenizer = load_tokenizer(str(root / "data" / "models" / "lore-nano"))
    counted = build_prompts(*bundled, budget, tokenizer=tokenizer)
    assert counted.prompt.equals(build_prompts(*bundled, budget).prompt)
    assert set(counted.dropped) == {"{}"}
    assert count_dropped(counted).empty
    longest = max(token_counter(tokenizer)(counted.prompt.tolist()))
    assert longest <= load_template("nano").budgets[budget].tokens  # type: ignore[index]


def test_every_prompt_is_the_one_of_its_pair_alone(
    world_tables: Tables, captions: "pd.Series[Any]", tiny_model: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    pairs = world_tables["pairs"].sample(40, random_state=1)
    rules = {pairs.query_id.iloc[0]: ["navy is <blue>"]}
    template = load_template("en").model_copy(update={"budgets": tight("en", 830)})
    made = build_prompts(
        world_tables | {"pairs": pairs}, captions, "mid", template=template, tokenizer=tokenizer, rules=rules
    )
    rows = world_tables["items"].set_index("item_id", drop=False).to_dict("index")
    queries = world_tables["queries"].set_index("query_id")["query"]
    for row in made.itertuples():
        sections = item_sections(rows[row.item_id], captions[row.item_id])
        alone = render_prompt(
            queries[row.query_id], sections, "mid", template=template, tokenizer=tokenizer,
            rules=rules.get(str(row.query_id), ()),
        )  # fmt: skip
        assert row.prompt == alone
    assert (
        made.prompt.str.contains("- navy is (blue)", regex=False).sum()
        == (pairs.query_id == pairs.query_id.iloc[0]).sum()
    )


def tight(name: str, tokens: int) -> dict[str, Any]:
    budgets = load_template(name).budgets
    return {**budgets, "mid": budgets["mid"].model_copy(update={"tokens": tokens})}


def test_what_the_budget_drops_is_counted_by_section(
    world_tables: Tables, captions: "pd.Series[Any]", tiny_model: Path
) -> None:
    template = load_template("nano").model_copy(update={"budgets": tight("nano", 28)})
    made = build_prompts(
        world_tables, captions, "mid", template=template, tokenizer=load_tokenizer(str(tiny_model))
    )
    assert made.prompt.str.contains("\ntitle: ").all()
    told = count_dropped(made)
    assert set(told.index) <= set(BUDGETS["mid"])
    for section, row in told.iterrows():
        by_pair = [json.loads(text).get(section, 0) for text in made.dropped]
        assert (row["values"], row["pairs"]) == (sum(by_pair), sum(n > 0 for n in by_pair))
    assert told["values"].sum() > 0


def test_the_chunks_are_the_whole(
    world_tables: Tables, captions: "pd.Series[Any]", monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_prompts(world_tables, captions, "full")
    monkeypatch.setattr(build, "CHUNK", 7)
    chunks = list(stream_prompts(world_tables, captions, "full"))
    assert [len(chunk) for chunk in chunks[:-1]] == [7] * (len(chunks) - 1)
    pd.testing.assert_frame_equal(pd.concat(chunks, ignore_index=True), whole)


def test_no_pairs_make_an_empty_frame(world_tables: Tables, captions: "pd.Series[Any]") -> None:
    made = build_prompts(world_tables | {"pairs": world_tables["pairs"].head(0)}, captions, "mid")
    assert (len(made), list(made.columns)) == (0, PROMPT_COLUMNS)
    assert count_dropped(made).empty


def test_repeated_keys_and_missing_captions_are_named(
    world_tables: Tables, captions: "pd.Series[Any]"
) -> None:
    items = world_tables["items"]
    twice = pd.concat([items, items.head(1)])
    with pytest.raises(DataError, match="1 repeated item_id, first 'train-i00000-0'"):
        build_prompts(world_tables | {"items": twice}, captions, "mid")
    with pytest.raises(DataError, match="2 items have no caption entry; first: 'train-i00000-0'"):
        build_prompts(world_tables, captions.iloc[2:], "mid")
