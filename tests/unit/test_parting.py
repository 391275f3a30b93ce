"""The reader of completions: where they part, and that nothing a model writes acts on the page."""

from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ipywidgets import HTML, BoundedIntText, Dropdown, Label, VBox, Widget

from lore_lib.errors import DataError
from lore_lib.viz.parting import ALL, completions_browser, completions_card, part

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre></td></table><h1>relevant</h1>",
    "{{ rows }}{% raw %}",
    "$\\href{javascript:alert(1)}{cheap}$",
)


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def samples(*completions: tuple[str, str], system: str = "direct", pair: str = "p1") -> pd.DataFrame:
    rows = [
        {"system": system, "pair_id": pair, "sample": i, "completion": text, "label": label,
         "parse_kind": "ok" if label else "no_label", "tokens": 3}
        for i, (text, label) in enumerate(completions)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def prompts(*pairs: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"pair_id": name, "prompt": f"query: {name}", "label": gold} for name, gold in pairs]
    )


@given(st.lists(st.text(alphabet="ab \n", max_size=12), min_size=1, max_size=5))
def test_the_parts_of_a_text_are_the_text_and_mean_what_they_say(texts: list[str]) -> None:
    parted = part(texts)
    assert ["".join((p.shared, p.together, p.alone)) for p in parted] == texts
    if len(texts) > 1:
        assert len({p.shared for p in parted}) == 1
        for place, mine in enumerate(parted):
            begins = mine.shared + mine.together
            others = [text for other, text in enumerate(texts) if other != place]
            assert any(text.startswith(begins) for text in others)


def test_texts_part_by_whole_words() -> None:
    colours = part(["colour navy\nL3", "colour natural\nL3", "colour navy\nL4"])
    assert [p.shared for p in colours] == ["colour "] * 3
    assert [p.together for p in colours] == ["navy\n", "", "navy\n"]
    assert [p.alone for p in colours] == ["L3", "natural\nL3", "L4"]
    assert [p.alone for p in part(["same", "same"])] == ["", ""]
    assert part(["alone"])[0].alone == "alone"


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_model_or_a_seller_writes_is_text_and_nothing_else(attack: str) -> None:
    plain = samples(("one two", "L1"), ("one three", ""))
    hostile = samples((f"one {attack} two", "L1"), (f"one {attack} three", "")).assign(system=attack)
    asked = prompts(("p1", "L1"))
    calm = Page(completions_card(plain, asked, "p1", "direct"))
    page = Page(completions_card(hostile, asked.assign(prompt=attack), "p1", attack))
    assert page.tags == calm.tags
    assert page.text.count(attack) == 2 + 2


def test_the_card_says_what_is_right_how_often_and_why_one_did_not_parse() -> None:
    drawn = samples(("a", "L2"), ("b", "L2"), ("c", ""), ("b", "L2"))
    page = Page(completions_card(drawn, prompts(("p1", "L2")), "p1", "direct"))
    assert "gold L2, 3 of 4 right" in page.text
    assert [page.text.count(f"{times} ×") for times in (1, 2)] == [2, 1]
    assert page.text.count(" right") == 1 + 2
    assert "no_label" in page.text


def test_a_pair_that_is_not_there_is_named_with_the_nearest() -> None:
    told = "no completions of 'direct' for pair 'pair-2'; did you mean 'pair-1'"
    with pytest.raises(DataError, match=told):
        completions_card(samples(("a", "L1"), pair="pair-1"), prompts(("pair-1", "L1")), "pair-2", "direct")


def test_the_browser_steps_through_what_is_chosen() -> None:
    drawn = pd.concat(
        [
            samples(("a", "L1"), ("b", "L2"), pair="p1"),
            samples(("c", "L1"), ("d", "L1"), pair="p2"),
            samples(("e", "L4"), ("f", "L1"), pair="p3", system="naive"),
        ]
    )
    box = completions_browser(drawn, prompts(("p1", "L1"), ("p2", "L1"), ("p3", "L4")))
    parts = list(walk(box))
    chosen = {w.description: w for w in parts if isinstance(w, Dropdown)}
    (place,), (count,), (card,) = (
        [w for w in parts if isinstance(w, kind)] for kind in (BoundedIntText, Label, HTML)
    )
    assert count.value == "of 2"
    assert "on p1" in card.value
    place.value = 2
    assert "on p2" in card.value
    chosen["right"].value = 1
    assert (count.value, place.value) == ("of 1", 1)
    assert "on p1" in card.value
    chosen["gold"].value = "L4"
    assert (count.value, card.value) == ("of 0", "no such pair")
    chosen["right"].value = ALL
    chosen["system"].value = "naive"
    assert "on p3" in card.value


def walk(widget: Widget) -> list[Widget]:
    return [widget, *(each for child in getattr(widget, "children", ()) for each in walk(child))]


def test_the_browser_is_a_widget_without_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(completions_browser(samples(("a", "L1")), prompts(("p1", "L1"))), VBox)
    assert capsys.readouterr() == ("", "")
