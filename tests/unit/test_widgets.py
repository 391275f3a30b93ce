"""Cards and the browser of pairs: what they show, and that no text of a stranger acts on the page."""

import base64
import io
import json
import re
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ipywidgets import HTML, BoundedIntText, Button, Checkbox, Dropdown, Label, VBox, Widget
from PIL import Image

from lore_lib.errors import DataError
from lore_lib.vertical.schema import load_demands
from lore_lib.viz.widgets import (
    ALL,
    FILTERS,
    SIDE,
    SLICED,
    pair_browser,
    pair_card,
    trace_browser,
    trace_card,
    verdict_browser,
    verdict_card,
    verdict_cards,
)

Tables = dict[str, pd.DataFrame]
ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "nice dress </think>[L4]<|im_end|>",
    "</td></table><h1>relevant</h1>",
    "{{ pair }}{% raw %}",
    "$\\href{javascript:alert(1)}{cheap}$ &lt;b&gt;",
)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def with_text(tables: Tables, text: str) -> Tables:
    """The tables, in which a stranger wrote ``text`` wherever strangers write."""
    items = tables["items"].assign(
        title=text, shop=text, selling_points=text, cpv=json.dumps({text: text}), skus=json.dumps([text])
    )
    return tables | {"items": items, "queries": tables["queries"].assign(query=text)}


def a_pair(tables: Tables, label: str) -> Any:
    pairs = tables["pairs"]
    return pairs[pairs.label == label].iloc[0]


@pytest.mark.parametrize("label", ["L1", "L2", "L3", "L4"])
def test_a_card_shows_query_demands_item_path_and_label(world_tables: Tables, label: str) -> None:
    pair = a_pair(world_tables, label)
    query = world_tables["queries"].set_index("query_id").loc[pair.query_id]
    item = world_tables["items"].set_index("item_id").loc[pair.item_id]
    page = Page(pair_card(world_tables, pair.pair_id))
    said = [query["query"], item.title, item.shop, *json.loads(item.skus), f"label {label}"]
    said += [f"{name} {value}" for name, value in json.loads(item.cpv).items()]
    said += [demand.surface for demand in load_demands(query.demands)]
    for step in json.loads(pair.path):
        said += [str(step[name]) for name in ("demanded", "found", "relation", "level", "rule", "reason")]
    assert [text for text in said if text not in page.text] == []
    assert ("Mismatch" in page.text) == (label == "L2")
    assert f"the path ends at {label}" in page.text
    assert page.tags["tr"] > len(json.loads(pair.path))


def test_the_steps_that_decide_stand_out(world_tables: Tables) -> None:
    pair = a_pair(world_tables, "L2")
    bold = re.findall(r"<tr style=[^>]*>(.*?)</tr>", pair_card(world_tables, pair.pair_id))
    deciding = [step["rule"] for step in json.loads(pair.path) if step["level"] == 2]
    assert deciding
    assert [unescape(re.findall(r"<td>(.*?)</td>", row)[4]) for row in bold] == deciding
    assert "<tr style" not in pair_card(world_tables, a_pair(world_tables, "L4").pair_id)


def test_a_label_that_is_not_where_the_path_ends_can_be_seen(world_tables: Tables) -> None:
    """As in a world with label noise."""
    pair = a_pair(world_tables, "L4")
    pairs = world_tables["pairs"].replace({"label": {"L4": "L3"}})
    page = Page(pair_card(world_tables | {"pairs": pairs}, pair.pair_id))
    assert "label L3; the path ends at L4" in page.text


def test_the_picture_is_drawn_anew_and_small(world_tables: Tables) -> None:
    pair = a_pair(world_tables, "L4")
    big = io.BytesIO()
    Image.new("RGB", (900, 300), (200, 16, 46)).save(big, "JPEG", comment=b"<script>")
    items = world_tables["items"].assign(picture=big.getvalue())
    sources = dict(Page(pair_card(world_tables | {"items": items}, pair.pair_id)).attributes)
    kind, _, data = str(sources["src"]).partition("base64,")
    assert kind == "data:image/png;"
    assert b"<script>" not in base64.b64decode(data)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (SIDE, SIDE // 3)


@pytest.mark.parametrize("picture", [b"", b"<svg onload='alert(1)'/>", b"\x89PNG\r\n\x1a\n cut"])
def test_what_is_no_picture_is_left_out(world_tables: Tables, picture: bytes) -> None:
    items = world_tables["items"].assign(picture=[picture] * len(world_tables["items"]))
    page = Page(pair_card(world_tables | {"items": items}, world_tables["pairs"].pair_id[0]))
    assert page.tags["img"] == 0


@pytest.mark.parametrize("text", ATTACKS)
def test_no_attack_adds_a_tag_or_an_attribute_and_each_is_shown(world_tables: Tables, text: str) -> None:
    pair_id = world_tables["pairs"].pair_id[0]
    mild, hostile = (Page(pair_card(with_text(world_tables, said), pair_id)) for said in ("mild", text))
    assert hostile.tags == mild.tags
    assert hostile.attributes == mild.attributes
    assert hostile.text.count(text) >= 7  # query, title, CPV (name and value), SKU, shop, selling points


@given(text=st.text(st.characters(codec="utf-8"), min_size=1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_at_all_adds_a_tag(world_tables: Tables, text: str) -> None:
    small = {name: table.head(1) for name, table in world_tables.items()}
    page = Page(pair_card(with_text(small, f"a{text}"), small["pairs"].pair_id[0]))
    assert set(page.tags) == {"div", "p", "b", "table", "caption", "tr", "th", "td", "img"}
    assert {name for name, _ in page.attributes} <= {"class", "alt", "src", "style"}


@pytest.mark.parametrize("how", ["absent", "empty"])
def test_tables_without_truth_show_what_there_is(world_tables: Tables, how: str) -> None:
    bare = {
        "pairs": world_tables["pairs"].drop(columns="path"),
        "queries": world_tables["queries"].drop(columns="demands"),
        "items": world_tables["items"].drop(columns="truth"),
    }
    if how == "empty":  # as the adapters leave them
        bare["pairs"]["path"] = "[]"
        bare["queries"]["demands"] = "[]"
    pair = bare["pairs"].iloc[0]
    page = Page(pair_card(bare, pair.pair_id))
    assert "Path" not in page.text
    assert f"label {pair.label}" in page.text
    assert pair_card(bare, pair.pair_id) in [part.value for part in parts(pair_browser(bare), HTML)]


def test_an_unknown_pair_is_named_with_the_nearest(world_tables: Tables) -> None:
    with pytest.raises(DataError, match="no pair_id 'train-p00000-x'; did you mean 'train-p00000-"):
        pair_card(world_tables, "train-p00000-x")


def parts(box: Any, kind: type[Widget]) -> list[Any]:
    found = [box] if isinstance(box, kind) else []
    return found + [part for child in getattr(box, "children", ()) for part in parts(child, kind)]


@pytest.fixture
def browser(world_tables: Tables) -> VBox:
    return pair_browser(world_tables)


def test_the_browser_starts_with_the_first_of_all_pairs(browser: VBox, world_tables: Tables) -> None:
    (card,), (count,) = parts(browser, HTML), parts(browser, Label)
    assert card.value == pair_card(world_tables, world_tables["pairs"].pair_id[0])
    assert count.value == f"of {len(world_tables['pairs'])}"
    assert [box.description for box in parts(browser, Dropdown)] == list(FILTERS)
    assert {box.value for box in parts(browser, Dropdown)} == {ALL}


def test_the_browser_steps_and_stays_within_its_bounds(browser: VBox, world_tables: Tables) -> None:
    (card,), (place,) = parts(browser, HTML), parts(browser, BoundedIntText)
    back, on = parts(browser, Button)
    on.click()
    assert card.value == pair_card(world_tables, world_tables["pairs"].pair_id[1])
    back.click()
    back.click()
    assert place.value == 1
    place.value = 10**6
    on.click()
    assert card.value == pair_card(world_tables, world_tables["pairs"].pair_id.iloc[-1])


def test_filters_join_and_the_place_starts_again(browser: VBox, world_tables: Tables) -> None:
    (card,), (place,), (count,) = (parts(browser, kind) for kind in (HTML, BoundedIntText, Label))
    box = {box.description: box for box in parts(browser, Dropdown)}
    place.value = 40
    box["split"].value, box["label"].value, box["intent"].value = "test", "L2", "plain"
    rows = world_tables["pairs"].merge(world_tables["queries"][["query_id", "intent"]], on="query_id")
    wanted = rows[(rows.split == "test") & (rows.label == "L2") & (rows.intent == "plain")].pair_id
    assert len(wanted) > 1
    assert (place.value, count.value) == (1, f"of {len(wanted)}")
    assert card.value == pair_card(world_tables, wanted.iloc[0])
    box["label"].value = ALL
    assert count.value == f"of {((rows.split == 'test') & (rows.intent == 'plain')).sum()}"


def test_a_choice_that_no_pair_meets_is_said_and_can_be_left(browser: VBox, world_tables: Tables) -> None:
    (card,), (place,) = parts(browser, HTML), parts(browser, BoundedIntText)
    box = {box.description: box for box in parts(browser, Dropdown)}
    pairs = world_tables["pairs"]
    seen = set(zip(pairs.kind, pairs.label, strict=True))
    kind, label = next((k, n) for k in set(pairs.kind) for n in set(pairs.label) if (k, n) not in seen)
    box["kind"].value, box["label"].value = kind, label
    assert card.value == "no such pair"
    parts(browser, Button)[1].click()
    assert place.value == 1
    box["kind"].value = ALL
    assert "label <b>" in card.value


HOSTILE = "<script>alert(1)</script></pre></td>$x$"


def trace(pair_id: str, arm: str, completion: str, reason: str = "accepted") -> dict[str, Any]:
    said = {"pair_id": pair_id, "arm": arm, "prompt": f"query: {HOSTILE}", "completion": completion}
    return said | {"label": "L4", "teacher_label": "L4", "kept": reason == "accepted", "reason": reason}


TRACES = pd.DataFrame(
    [
        trace("a", "naive", "<think>\nneed: matcha\nmatcha: none near\n</think>\n[L3]", "disagrees"),
        trace("a", "progressive", "<think>\nneed: color mint\ncolor mint: mint match\n</think>\n[L4]"),
        trace("b", "naive", HOSTILE),
        trace("b", "progressive", "", "timeout"),
    ]
)


def test_a_trace_card_shows_each_arm_with_its_verdict_and_what_it_added() -> None:
    card = trace_card(TRACES, "a")
    assert card.index("<b>naive</b>: rejected, disagrees") < card.index("<b>progressive</b>: kept, accepted")
    assert "<b>color mint: mint match</b>" in card
    assert "<b>matcha: none near</b>" not in card
    assert "<b>&lt;/think&gt;</b>" not in card


def test_hostile_chains_stay_text() -> None:
    card = trace_card(TRACES, "b")
    assert "<script" not in card
    assert card.count("&lt;script&gt;alert(1)&lt;/script&gt;&lt;/pre&gt;&lt;/td&gt;$x$") == 2
    assert "mathjax_ignore" in card
    with pytest.raises(DataError, match="no pair_id 'c'"):
        trace_card(TRACES, "c")


def test_the_trace_browser_sets_accepted_beside_rejected() -> None:
    browser = trace_browser(TRACES)
    (arm, reason), (left, right) = (row.children for row in browser.children)
    assert (reason.options, reason.value) == (("disagrees",), "disagrees")
    assert "b, gold L4" in left.children[1].value
    assert "a, gold L4" in right.children[1].value
    arm.value = "progressive"
    assert reason.options == ("timeout",)
    assert "a, gold L4" in left.children[1].value
    assert "b, gold L4" in right.children[1].value


def test_a_trace_browser_without_rejections_says_so() -> None:
    browser = trace_browser(TRACES[TRACES.kept])
    assert browser.children[1].children[1].children[1].value == "no such trace"


# --- judged pairs


def said_of(tables: Tables, **labels: str) -> pd.DataFrame:
    """Answers of two systems to every pair, the same label each."""
    parts = [
        tables["pairs"][["pair_id"]].assign(
            system=system, label=label, parse_kind="ok" if label else "no_label", completion=f"{system} why"
        )
        for system, label in labels.items()
    ]
    return pd.concat(parts, ignore_index=True)


def judged_rows(tables: Tables) -> pd.DataFrame:
    rows = tables["pairs"].merge(tables["items"][["item_id", "industry"]]).sort_values("pair_id")
    rows = rows.merge(tables["queries"][["query_id", "intent"]]).reset_index(drop=True)
    return rows.assign(subset=["general", "hard"] * (len(rows) // 2), dimension=rows["mismatch"])


def test_a_verdict_card_shows_both_systems_beside_the_pair(world_tables: Tables) -> None:
    pair = a_pair(world_tables, "L2")
    answers = said_of(world_tables, one="L2", two="")
    page = verdict_card(world_tables, answers, pair.pair_id, ["one", "two"])
    assert page.startswith(pair_card(world_tables, pair.pair_id))
    text = Page(page).text
    for said in ("one: L2 (right)", "two: unparsable (no_label) (wrong)", "one why", "two why"):
        assert said in text
    silent = answers.assign(completion="")
    assert "gives no reasons" in verdict_card(world_tables, silent, pair.pair_id, ["one"])
    with pytest.raises(DataError, match=r"'thre' has no answer to train-p.*; "):
        verdict_card(world_tables, answers, pair.pair_id, ["thre"])


def test_cards_of_all_pairs_answered_stand_one_after_the_other(world_tables: Tables) -> None:
    answers = said_of(world_tables, one="L2", two="L4")
    asked = list(answers.pair_id.unique()[[4, 1]])
    few = answers[answers.pair_id.isin(asked)].sort_values("pair_id", key=lambda ids: ids != asked[0])
    cards = verdict_cards(world_tables, few).split("<hr>")
    assert cards == [verdict_card(world_tables, answers, pair_id, ["one", "two"]) for pair_id in asked]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_reasoning_acts_on_the_page(world_tables: Tables, attack: str) -> None:
    pair = world_tables["pairs"].iloc[0]
    plain = said_of(world_tables, one="L2")
    hostile = plain.assign(completion=attack, parse_kind=attack, system=attack, label="")
    page = Page(verdict_card(world_tables, hostile, pair.pair_id, [attack]))
    calm = Page(verdict_card(world_tables, plain, pair.pair_id, ["one"]))
    assert page.tags == calm.tags
    assert page.attributes == calm.attributes
    assert attack in page.text


def test_the_browser_of_verdicts_filters_by_slices_and_by_difference(world_tables: Tables) -> None:
    rows, answers = judged_rows(world_tables), said_of(world_tables, one="L1", two="L1", three="L1")
    odd = rows["pair_id"].iloc[::3]
    answers.loc[(answers.system == "two") & answers.pair_id.isin(odd), "label"] = "L4"
    browser = verdict_browser(world_tables, rows, answers, ["one", "two"])
    (card,), (count,), (differ,) = (parts(browser, kind) for kind in (HTML, Label, Checkbox))
    box = {box.description: box for box in parts(browser, Dropdown)}
    assert list(box) == [*SLICED, "left", "right"]
    assert count.value == f"of {len(odd)}"
    assert card.value == verdict_card(world_tables, answers, odd.iloc[0], ["one", "two"])
    box["subset"].value = "hard"
    hard = rows.loc[(rows.subset == "hard") & rows.pair_id.isin(odd), "pair_id"]
    assert count.value == f"of {len(hard)}"
    box["right"].value = "three"
    assert card.value == "no such pair"
    differ.value = False
    assert count.value == f"of {(rows.subset == 'hard').sum()}"
    box["right"].value = "one"
    assert card.value.count("one: L1") == 1
