"""One interface over all judges: cached, resumable, and strict about what an endpoint may say."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lore_lib.config import load_config
from lore_lib.cot.chat import Reply, Request
from lore_lib.cot.replies import ReplyCache
from lore_lib.errors import DataError, EngineError
from lore_lib.rair.baselines import GradientBoosting, LexicalOverlap, MajorityLabel
from lore_lib.rair.systems import (
    ANSWER_COLUMNS,
    ASKED_COLUMNS,
    INSTRUCTED,
    ChatJudge,
    Classifier,
    answer_all,
    asked_pairs,
    endpoint_judge,
    language_model,
    told_pairs,
)

REFERENCE = "mini/a@1-0"


@pytest.fixture
def asked(world_tables: dict[str, pd.DataFrame], captions: "pd.Series[Any]") -> pd.DataFrame:
    """Nine pairs."""
    return asked_pairs(world_tables, captions, load_config("smoke").features, None).head(9)


class Counting:
    """Always L3; counts the pairs it is asked for, and may die at a block."""

    alone = False

    def __init__(self, name: str = "l3", dies_at: int = 99, weights: int = 1) -> None:
        self.name, self.dies_at, self.weights = name, dies_at, weights
        self.blocks: list[int] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def answer(self, asked: pd.DataFrame) -> pd.DataFrame:
        if len(self.blocks) == self.dies_at:
            raise KeyboardInterrupt
        self.blocks.append(len(asked))
        rows = asked[["pair_id"]].assign(label="L3", parse_kind="ok", completion="", tokens=0)
        return rows[list(ANSWER_COLUMNS)]


def test_what_is_asked_tells_no_label(asked: pd.DataFrame, world_tables: dict[str, pd.DataFrame]) -> None:
    assert list(asked) == [*ASKED_COLUMNS, INSTRUCTED]
    for row in asked.itertuples():
        assert row.prompt.splitlines()[0] == f"query: {row.query}"
        assert row.item_text == row.prompt.partition("\n")[2]
        assert row.instruction.startswith("You judge search results")
        assert f"Query: {row.query}" in row.instruction
    told = told_pairs(
        world_tables["pairs"].assign(bare=[f"query: q\ntitle: {i}" for i in world_tables["pairs"].item_id]),
        world_tables["queries"],
    )
    assert (told["item_text"] == "title: " + told["item_id"]).all()


@pytest.mark.parametrize("nothing", ["", None, float("nan")])
def test_a_picture_that_nobody_described_has_no_line(
    world_tables: dict[str, pd.DataFrame], captions: "pd.Series[Any]", nothing: Any
) -> None:
    blind = pd.Series([nothing] * len(captions), index=captions.index, dtype=object)
    rows = asked_pairs(world_tables, blind, load_config("smoke").features, None)
    assert not rows["prompt"].str.contains("picture:").any()
    assert (
        asked_pairs(world_tables, captions, load_config("smoke").features, None)["prompt"]
        .str.contains("picture:")
        .all()
    )


def test_a_killed_evaluation_goes_on_at_its_block(asked: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        answer_all([Counting(dies_at=2)], asked, tmp_path, REFERENCE, 1, block_pairs=2)
    again = Counting()
    answers = answer_all([again], asked, tmp_path, REFERENCE, 1, block_pairs=2)
    assert again.blocks == [2, 2, 1]
    assert answers["pair_id"].tolist() == asked["pair_id"].tolist()
    assert set(answers) == {"system", "benchmark", *ANSWER_COLUMNS}
    assert set(answers["benchmark"]) == {REFERENCE}


@pytest.mark.parametrize("change", ["weights", "benchmark", "prompt"])
def test_answers_are_kept_for_the_same_system_pairs_and_benchmark_only(
    asked: pd.DataFrame, tmp_path: Path, change: str
) -> None:
    answer_all([Counting()], asked, tmp_path, REFERENCE, 1)
    other = Counting(weights=2 if change == "weights" else 1)
    pairs = asked.assign(prompt="other") if change == "prompt" else asked
    answer_all([other], pairs, tmp_path, "mini/a@2-0" if change == "benchmark" else REFERENCE, 1)
    assert other.blocks == [9]


def test_systems_keep_their_order_and_their_names_apart(asked: pd.DataFrame, tmp_path: Path) -> None:
    answers = answer_all([Counting("b"), Counting("a")], asked, tmp_path, REFERENCE, 1)
    assert answers["system"].unique().tolist() == ["b", "a"]
    with pytest.raises(DataError, match="two systems are named b"):
        answer_all([Counting("b"), Counting("b")], asked, tmp_path, REFERENCE, 1)
    with pytest.raises(DataError, match="lack the columns prompt"):
        answer_all([Counting()], asked.drop(columns="prompt"), tmp_path, REFERENCE, 1)


def test_a_system_that_answers_other_pairs_is_refused(asked: pd.DataFrame, tmp_path: Path) -> None:
    class Lazy(Counting):
        def answer(self, asked: pd.DataFrame) -> pd.DataFrame:
            return super().answer(asked).iloc[1:]

    with pytest.raises(DataError, match="l3 answered other pairs than the 9"):
        answer_all([Lazy()], asked, tmp_path, REFERENCE, 1)


def test_classifiers_are_systems(asked: pd.DataFrame, tmp_path: Path) -> None:
    train = asked.assign(label=["L1", "L4", "L4"] * 3)
    judges = [Classifier(MajorityLabel(), train), Classifier(LexicalOverlap(), train)]
    answers = answer_all(judges, asked, tmp_path, REFERENCE, 1)
    assert set(answers.loc[answers.system == MajorityLabel.name, "label"]) == {"L4"}
    assert set(answers["parse_kind"]) == {"ok"}
    other = Classifier(MajorityLabel(), train.assign(label="L1"))
    assert other.identity != judges[0].identity
    few, many = (Classifier(GradientBoosting(directions), train).identity for directions in (2, 3))
    assert few != many, "answers of other settings would be taken for its own"


def test_a_language_model_is_a_system(asked: pd.DataFrame, tmp_path: Path, tiny_model: Path) -> None:
    config = load_config("smoke", overrides={"sampling.max_completion_tokens": 4})
    model = language_model(config, "tiny", tiny_model)
    assert "model.safetensors" in model.identity["weights"]
    answers = answer_all([model], asked, tmp_path, REFERENCE, 1)
    assert (answers["tokens"] <= 4).all()
    assert (answers.loc[answers.parse_kind != "ok", "label"] == "").all()
    sampled = load_config("smoke", overrides={"rair.greedy": False})
    assert language_model(sampled, "tiny", tiny_model).sampling.temperature == 1.0


class Chat:
    """Says what it is told, in order."""

    name = "stub"

    def __init__(self, *replies: Reply) -> None:
        self.replies, self.asked = list(replies), 0

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": "stub"}

    def complete(self, requests: list[Request], arrived: Any = lambda place, reply: None) -> list[Reply]:
        said = [self.replies[(self.asked + at) % len(self.replies)] for at in range(len(requests))]
        self.asked += len(requests)
        for place, reply in enumerate(said):
            arrived(place, reply)
        return said


def reply(label: str = "L2", mismatch: str = "Color", why: str = "navy", **other: Any) -> Reply:
    return Reply(json.dumps({"why": why, "label": label, "mismatch": mismatch, **other}), 9, 5)


@pytest.mark.parametrize(
    ("said", "label", "kind"),
    [
        (reply(), "L2", "ok"),
        (reply(mismatch="color"), "L2", "ok"),
        (reply(mismatch=""), "L2", "ok"),
        (reply("L4", "Color"), "L4", "ok"),  # a mismatch beside another level than L2 says nothing
        (reply(mismatch="Colour"), "", "unknown_mismatch"),
        (reply("L5"), "", "malformed"),
        (reply("l4"), "", "malformed"),
        (reply(extra=1), "", "malformed"),
        (Reply("I think [L4]"), "", "malformed"),
        (Reply(reply("L4").text + reply("L1").text), "", "malformed"),
        (reply("L3", "", why="</think>[L4] <think>"), "L3", "ok"),
        (Reply("", failure="empty"), "", "empty"),
        (Reply("{", failure="truncated"), "", "truncated"),
    ],
)
def test_an_endpoint_is_read_strictly(asked: pd.DataFrame, said: Reply, label: str, kind: str) -> None:
    row = ChatJudge("far", Chat(said)).answer(asked.head(1)).iloc[0]
    assert (row["label"], row["parse_kind"]) == (label, kind)


def test_an_endpoint_is_asked_with_the_task_explained(asked: pd.DataFrame) -> None:
    turns = []

    class Hears(Chat):
        def complete(self, requests: list[Request], arrived: Any = lambda place, reply: None) -> list[Reply]:
            turns.extend(request.messages[0]["content"] for request in requests)
            return super().complete(requests, arrived)

    ChatJudge("far", Hears(reply())).answer(asked)
    assert [turn.startswith(told) for turn, told in zip(turns, asked.instruction, strict=True)] == [True] * 9
    with pytest.raises(DataError, match="far needs the column 'instruction'"):
        ChatJudge("far", Hears(reply())).answer(asked[list(ASKED_COLUMNS)])


def test_an_endpoint_pays_for_no_answer_twice(asked: pd.DataFrame, tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    down = Chat(reply("L4", ""), Reply(failure="timeout"), reply("L1", ""))
    with pytest.raises(EngineError, match="3 of 9 calls of stub did not get through; first: timeout"):
        answer_all([ChatJudge("far", down, cache)], asked, tmp_path / "a", REFERENCE, 1)
    up = Chat(reply("L3", ""))
    answers = answer_all([ChatJudge("far", up, cache)], asked, tmp_path / "a", REFERENCE, 1)
    assert up.asked == 3
    assert answers["label"].tolist() == ["L4", "L3", "L1"] * 3


def test_the_endpoint_of_the_config_is_asked_by_its_name(tmp_path: Path) -> None:
    config = load_config("smoke", overrides={"rair.judge_model": "some-model"})
    judge = endpoint_judge(config, tmp_path / "replies.sqlite")
    assert judge.name == "some-model"
    assert judge.identity["model"] == "some-model"
    assert judge.identity["max_tokens"] == 1024
