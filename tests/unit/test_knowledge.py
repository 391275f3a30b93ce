"""The knowledge index: clicks first, BM25 where they are silent, and never the judged item itself."""

import pandas as pd
import pytest

from lore_lib.cot.knowledge import KnowledgeIndex

POINTS = {
    "a": "matcha (mint)",
    "b": "klein (cobalt); frock (dress)",
    "c": "",
    "d": "matcha (emerald)",
    "e": "matcha (mint); latte (camel)",
}
CLICKS = [("q1", "a", 9), ("q1", "c", 8), ("q1", "d", 3), ("q2", "b", 5)]


def index(
    top_clicked: int = 5, selling_points: int = 3, clicks: list[tuple[str, str, int]] = CLICKS
) -> KnowledgeIndex:
    items = pd.DataFrame({"item_id": list(POINTS), "selling_points": list(POINTS.values())})
    return KnowledgeIndex(
        items, pd.DataFrame(clicks, columns=["query_id", "item_id", "clicks"]), top_clicked, selling_points
    )


def test_the_most_clicked_items_come_first_and_suffice_when_they_explain() -> None:
    assert index().evidence("q1", ["matcha"]) == ["matcha (mint)", "matcha (emerald)"]
    assert index(top_clicked=1).evidence("q1", ["matcha"]) == ["matcha (mint)"]


def test_bm25_answers_only_where_the_clicks_are_silent() -> None:
    assert index().explain("q1", ["latte"]) == {"latte": "camel"}
    assert index(selling_points=0).explain("q1", ["latte"]) == {}
    assert index().explain("unclicked", ["klein"]) == {"klein": "cobalt"}


def test_the_judged_item_never_explains_its_own_pair() -> None:
    assert index().explain("q2", ["klein"]) == {"klein": "cobalt"}
    assert index().explain("q2", ["klein"], exclude_item="b") == {}
    assert index().explain("q1", ["latte"], exclude_item="e") == {}
    assert POINTS["b"] not in index().evidence("q2", ["klein", "frock"], exclude_item="b")


def test_excluding_an_item_does_not_cost_a_place_among_the_evidence() -> None:
    assert index(top_clicked=1).evidence("q1", ["matcha"], exclude_item="a")[0] != POINTS["a"]
    assert index(top_clicked=2).explain("q1", ["matcha"], exclude_item="a") == {"matcha": "emerald"}


def test_the_meaning_most_points_give_wins() -> None:
    ties = [("q1", "a", 1), ("q1", "d", 9), ("q1", "e", 1)]
    assert index(clicks=ties).explain("q1", ["matcha"]) == {"matcha": "mint"}


@pytest.mark.parametrize("words", [[], ["unheard"], ["(", ")"], ["", "\u200b"]], ids=repr)
def test_words_without_evidence_are_left_out(words: list[str]) -> None:
    assert index().explain("q1", words) == {}


def test_a_vertical_without_clicks_or_selling_points_explains_nothing() -> None:
    items = pd.DataFrame({"item_id": ["a"], "selling_points": [""]})
    clicks = pd.DataFrame({"query_id": [], "item_id": [], "clicks": []})
    assert KnowledgeIndex(items, clicks, 5, 3).explain("q", ["matcha"]) == {}


def test_equal_clicks_are_ordered_by_item_and_so_is_every_repetition() -> None:
    ties = [("q1", item, 4) for item in ("d", "a", "e")]
    assert index(clicks=ties).evidence("q1", ["matcha"]) == index(clicks=ties[::-1]).evidence(
        "q1", ["matcha"]
    )
