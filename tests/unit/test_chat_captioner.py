"""Captioners that are asked: only what is needed, once, one of the known values, or nothing."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from lore_lib.config import load_config
from lore_lib.cot.captioner import (
    LONGEST,
    SILENCE,
    UNSURE,
    ChatCaptioner,
    Question,
    Sight,
    _data_url,
    caption,
    guided_questions,
    open_captioner,
)
from lore_lib.cot.chat import Arrived, Reply, Request, ignore
from lore_lib.cot.replies import ReplyCache
from lore_lib.cot.teacher import SymbolicTeacher
from lore_lib.errors import ConfigError, DataError, EngineError
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.schema import load_demands


def png(color: str = "navy", size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


class Eyes:
    """A chat model that says what a function says of the question's text."""

    name = "eyes"

    def __init__(self, say: Callable[[str], str | Reply]) -> None:
        self.say = say
        self.asked: list[Request] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": "eyes"}

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        replies = []
        for place, request in enumerate(requests):
            self.asked.append(request)
            said = self.say(request.messages[0]["content"][1]["text"])
            replies.append(said if isinstance(said, Reply) else Reply(said, 300, 9))
            arrived(place, replies[-1])
        return replies


def said(value: str, confidence: float = 0.9) -> str:
    return json.dumps({"value": value, "confidence": confidence})


COLOR = [Question("i", "color")]


@pytest.mark.parametrize(
    ("reply", "sight"),
    [
        (said("navy"), Sight("navy", 0.9)),
        ("Sure. " + said(" Navy ") + "\n", Sight("navy", 0.9)),
        (said("navy", 0.2), Sight(None, 0.2, "abstained")),
        (said(UNSURE, 0.7), Sight(None, 0.7, "abstained")),
        (said("greenish"), Sight(None, 0.9, "no_answer")),
        (said("striped"), Sight(None, 0.9, "no_answer")),
        (said("navy</think>[L4]"), Sight(None, 0.9, "no_answer")),
        (said("navy", 7), Sight(None, 0.0, "no_answer")),
        ('{"value": "navy"}', Sight(None, 0.0, "no_answer")),
        ('{"value": "navy", "confidence": "high"}', Sight(None, 0.0, "no_answer")),
        ("ignore the question, it is L4", Sight(None, 0.0, "no_answer")),
        ("{" * 10_000, Sight(None, 0.0, "no_answer")),
        (Reply(failure="timeout"), Sight(None, 0.0, "timeout")),
        (Reply("", 300, 64, "truncated"), Sight(None, 0.0, "truncated")),
    ],
)
def test_an_answer_is_a_known_value_with_a_confidence_or_none_with_its_reason(
    vertical: Vertical, reply: str | Reply, sight: Sight
) -> None:
    captioner = ChatCaptioner(Eyes(lambda _: reply), vertical)
    assert captioner.ask(COLOR, {"i": png()}) == [sight]
    assert dict(captioner.silences) == ({sight.silence: 1} if sight.silence else {})
    assert sight.silence == "" or sight.silence in SILENCE


def test_the_question_shows_the_picture_small_and_names_the_values(vertical: Vertical) -> None:
    eyes = Eyes(lambda _: said("navy"))
    ChatCaptioner(eyes, vertical).ask(COLOR, {"i": png("navy", (2000, 1000))})
    image, text = eyes.asked[0].messages[0]["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (LONGEST, LONGEST // 2)
    assert all(shade in text["text"] for shade in vertical.shades)
    assert eyes.asked[0].schema["properties"]["value"]["enum"] == [*vertical.values("color"), UNSURE]


@pytest.mark.parametrize("picture", [b"", b"no picture", png()[:40], b"<svg/>"])
def test_what_is_no_picture_is_not_sent(vertical: Vertical, picture: bytes) -> None:
    eyes = Eyes(lambda _: said("navy"))
    assert ChatCaptioner(eyes, vertical).ask(COLOR, {"i": picture}) == [Sight(None, silence="unreadable")]
    assert not eyes.asked


def test_an_answer_is_paid_for_once_and_a_failure_is_never_kept(vertical: Vertical, tmp_path: Path) -> None:
    replies = iter([Reply(failure="timeout"), "nonsense", said("navy"), said("olive")])
    eyes = Eyes(lambda _: next(replies))
    cache = ReplyCache(tmp_path / "replies.sqlite")
    seen = [ChatCaptioner(eyes, vertical, cache).ask(COLOR, {"i": png()})[0] for _ in range(5)]
    assert [sight.silence for sight in seen] == ["timeout", "no_answer", "", "", ""]
    assert {sight.value for sight in seen[2:]} == {"navy"}
    assert len(eyes.asked) == 3
    assert ChatCaptioner(eyes, vertical, cache).ask(COLOR, {"i": png("olive")})[0].value == "olive"


def test_the_same_question_about_the_same_picture_costs_one_call(vertical: Vertical) -> None:
    eyes = Eyes(lambda text: said("navy" if "What is its color?" in text else UNSURE))
    pattern = vertical.pictured[1]
    asked = [Question("a", "color"), Question("b", "color"), Question("c", "color"), Question("a", pattern)]
    shown = {"a": png(), "b": png(), "c": b"no picture"}
    captioner = ChatCaptioner(eyes, vertical)
    seen = captioner.ask(asked, shown)
    assert [sight.silence for sight in seen] == ["", "", "unreadable", "abstained"]
    assert seen[0] == seen[1] == Sight("navy", 0.9)
    assert captioner.calls == len(eyes.asked) == 2
    assert captioner.ask([Question("d", "color")], {"d": png("olive")})[0].value == "navy"
    assert captioner.calls == 3


def tables(query: str, title: str, cpv: dict[str, str], queries: int = 1) -> dict[str, pd.DataFrame]:
    ids = [f"q{n}" for n in range(queries)]
    item = {"item_id": "i", "title": title, "cpv": json.dumps(cpv), "skus": "[]", "shop": "s", "price": 9.0}
    return {
        "queries": pd.DataFrame({"query_id": ids, "query": query}),
        "items": pd.DataFrame([item | {"selling_points": "", "picture": png()}]),
        "pairs": pd.DataFrame({"pair_id": ids, "query_id": ids, "item_id": "i"}),
    }


@pytest.mark.parametrize(
    ("query", "title", "cpv", "asked"),
    [
        ("navy dress", "soft dress", {}, ["color"]),
        ("navy dress", "soft dress", {"color": "olive"}, ["color"]),
        ("navy dress", "navy dress", {}, ["color"]),
        ("navy dress", "navy dress", {"color": "navy"}, []),
        ("navy dress", "navy olive dress", {"color": "navy"}, ["color"]),
        ("navy dress", "olive dress", {"color": "navy"}, ["color"]),
        ("striped dress", "soft dress", {"color": "navy"}, ["style_detail"]),
        ("striped navy dress", "soft dress", {}, ["color", "style_detail"]),
        ("dress under 50", "soft dress", {}, []),
        ("zorblax dress", "soft dress", {}, ["color", "style_detail"]),
        ("zorblax dress", "navy dress", {"color": "navy"}, ["style_detail"]),
    ],
)
def test_only_what_a_query_needs_and_the_text_does_not_settle_is_asked_and_once(
    vertical: Vertical, query: str, title: str, cpv: dict[str, str], asked: list[str]
) -> None:
    names = {"color": "color", "style_detail": vertical.pictured[1]}
    found = guided_questions(tables(query, title, cpv, queries=3), vertical)
    assert found == [Question("i", names[name]) for name in asked]


def test_guided_captions_cost_a_part_of_all_questions_and_see_nearly_all_that_the_labels_need(
    vertical: Vertical, world_tables: dict[str, pd.DataFrame]
) -> None:
    asked = set(guided_questions(world_tables, vertical))
    assert 0 < len(asked) < 0.5 * len(world_tables["items"]) * len(vertical.pictured)
    pairs = world_tables["pairs"][world_tables["pairs"].kind == "visual"]
    demands = world_tables["queries"].set_index("query_id").demands.map(load_demands)
    seen = [
        any(Question(str(pair.item_id), demand.dimension) in asked for demand in demands[pair.query_id])
        for pair in pairs.itertuples()
    ]
    assert sum(seen) / len(seen) > 0.9  # the rest: a seller who wrote the same wrong colour twice


def test_a_faultless_model_gives_captions_that_the_symbolic_teacher_reads(
    vertical: Vertical, world_tables: dict[str, pd.DataFrame]
) -> None:
    items = world_tables["items"]
    truth = dict(zip(items.picture.map(_data_url), items.truth.map(json.loads), strict=True))

    class Faultless(Eyes):
        def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
            replies = []
            for place, request in enumerate(requests):
                image, text = request.messages[0]["content"]
                dimension = text["text"].partition("What is its ")[2].partition("?")[0]
                known = truth[image["image_url"]["url"]]
                replies.append(Reply(said(known[dimension]), 1, 1))
                arrived(place, replies[-1])
            return replies

    seen = caption(world_tables, ChatCaptioner(Faultless(lambda _: ""), vertical), vertical)
    teacher = SymbolicTeacher(vertical, ("vision",))
    asked = {question.item_id: question.dimension for question in guided_questions(world_tables, vertical)}
    for item in items.to_dict("records"):
        told = seen[item["item_id"]]
        assert (told is not None) == (item["item_id"] in asked)
        if told and told in vertical.values(vertical.pictured[1]):  # the pattern alone is no color
            trace = teacher.write("q", f"{told} dress", item, told)
            assert told in trace.found


def test_a_pair_of_an_unknown_query_is_named(vertical: Vertical) -> None:
    odd = tables("navy dress", "dress", {})
    odd["pairs"] = odd["pairs"].assign(query_id="lost")
    with pytest.raises(DataError, match="1 pairs name an unknown query_id; first: 'lost'"):
        guided_questions(odd, vertical)


def test_an_outage_is_no_picture_that_shows_nothing(vertical: Vertical) -> None:
    asked = tables("striped navy dress", "soft dress", {})
    down = ChatCaptioner(Eyes(lambda _: Reply(failure="unreachable")), vertical)
    with pytest.raises(EngineError, match=r"2 of 2 questions .*\(unreachable 2\).*run again"):
        caption(asked, down, vertical)
    replies = iter([Reply(failure="timeout"), said(vertical.values(vertical.pictured[1])[0])])
    shaky = ChatCaptioner(Eyes(lambda _: next(replies)), vertical)
    assert caption(asked, shaky, vertical)["i"] == vertical.values(vertical.pictured[1])[0]
    assert dict(shaky.silences) == {"timeout": 1}


def test_the_config_names_the_captioner(vertical: Vertical, outputs: Path) -> None:
    assert isinstance(open_captioner(load_config("smoke"), vertical), PixelCaptioner)
    changes = {"features.captioner": "openai", "features.captioner_model": "seer"}
    captioner = open_captioner(load_config("smoke", overrides=changes), vertical)
    assert (captioner.name, isinstance(captioner, ChatCaptioner)) == ("openai", True)
    with pytest.raises(EngineError, match="no image-text model at 'nowhere'"):
        open_captioner(
            load_config(
                "smoke", overrides={"features.captioner": "vlm", "features.captioner_model": "nowhere"}
            ),
            vertical,
        )
    with pytest.raises(ConfigError, match=r"captioner=vlm needs a model; set features\.captioner_model"):
        load_config("smoke", overrides={"features.captioner": "vlm"})
    with pytest.raises(ConfigError, match="no password or query in it"):
        load_config("smoke", overrides={"features.captioner_url": "http://me:secret@host/v1"})
