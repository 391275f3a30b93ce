"""A model asked turn by turn: the bytes are those of asking it at once, and nothing is paid for twice."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lore_lib.config import load_config
from lore_lib.cot import batch as rooms
from lore_lib.cot.batch import Batch, prepare_batch, run_batch
from lore_lib.cot.chat import Arrived, Draw, Reply, Request, VllmChat, ignore
from lore_lib.cot.synthesis import read_traces
from lore_lib.cot.turns import Told, add_said, read_said, write_asked
from lore_lib.errors import ConfigError, EngineError

FAILING = {3: Reply("no answer", 9, 2), 4: Reply("", 9, 0, "empty"), 5: Reply(failure="refused")}


class Quick(VllmChat):
    """Reads bytes, and calls the first word of every query a colour; in some conversations it fails."""

    def __init__(self) -> None:
        super().__init__("quick", Draw())
        self.asked: list[str] = []

    def tokens(self, requests: Sequence[Request]) -> list[list[int]]:
        return [list(json.dumps(request.messages).encode()) for request in requests]

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        replies = [self.answer(tokens) for tokens in self.tokens(requests)]
        for place, reply in enumerate(replies):
            arrived(place, reply)
        return replies

    def answer(self, tokens: Sequence[int]) -> Reply:
        text = bytes(tokens).decode()
        self.asked.append(text)
        word = json.loads(text)[0]["content"].rpartition("query: ")[2].split()[0]
        step = {"said": word, "dimension": "color", "value": word, "negated": False, "found": "none"}
        said = json.dumps({"path": [step | {"verdict": "near", "why": "It is not told."}], "label": "L3"})
        return FAILING.get(sum(tokens) % 13, Reply(said, len(tokens), len(said)))


class Killed(Exception):
    pass


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Quick:
    """The teacher, and Ray done without: one actor, here."""
    quick = Quick()

    def ask(vllm: Quick, asked: Mapping[int, Path], workers: int) -> Iterator[tuple[int, str, Reply]]:
        for number, path in asked.items():
            for row in pq.read_table(path).to_pylist():
                yield number, row["key"], vllm.answer(row["tokens"])

    monkeypatch.setattr(rooms, "open_chat_model", lambda config: quick)
    monkeypatch.setattr(rooms, "ray_workers", lambda workers: nullcontext())
    monkeypatch.setattr(
        rooms, "on_workers", lambda make, numbers, workers, gpus=0: ((n, make()(n)) for n in numbers)
    )
    monkeypatch.setattr(rooms, "ask_vllm", ask)
    return quick


def laid_out(folder: Path, source: Path, engine: str) -> Batch:
    chosen = {"cot.pairs": 40, "cot.teacher": "vllm", "cot.teacher_model": "quick", "runtime.engine": engine}
    return prepare_batch(folder, source, load_config("smoke", overrides=chosen), "progressive", 16)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (folder / "manifest.json", *(folder / "traces").iterdir())
    }


def test_turn_by_turn_gives_the_bytes_of_asking_at_once_for_the_same_calls(
    model: Quick,
    source: Path,
    tmp_path: Path,
) -> None:
    at_once = laid_out(tmp_path / "a", source, "local")
    run_batch(at_once)
    asked, model.asked = model.asked, []
    in_turns = laid_out(tmp_path / "b", source, "ray")
    run_batch(in_turns)
    assert tree(in_turns.folder) == tree(at_once.folder)
    assert sorted(model.asked) == sorted(asked)
    assert [len(json.loads(text)) for text in model.asked] == sorted(len(json.loads(t)) for t in asked)
    assert {len(json.loads(text)) for text in asked} == {1, 3, 5}  # three turns
    reasons = set(read_traces(in_turns.folder).reason)
    assert {"not_json", "empty", "refused"} < reasons
    assert not [*(in_turns.folder / "asked").iterdir(), *(in_turns.folder / "said").iterdir()]
    model.asked = []
    run_batch(in_turns)
    assert not model.asked


def test_after_a_kill_failures_are_asked_again_and_answers_are_not(
    model: Quick,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = laid_out(tmp_path / "a", source, "local")
    run_batch(batch)
    whole, before = tree(batch.folder), sorted(model.asked)
    model.asked = []
    killed = laid_out(tmp_path / "b", source, "ray")
    answer, left = model.answer, iter(range(len(before) - 12))

    def dying(tokens: Sequence[int]) -> Reply:
        if next(left, None) is None:
            raise Killed
        return answer(tokens)

    monkeypatch.setattr(model, "answer", dying)
    with pytest.raises(Killed):
        run_batch(killed)
    monkeypatch.setattr(model, "answer", answer)
    first, model.asked = set(model.asked), []
    run_batch(killed)
    assert tree(killed.folder) == whole
    twice = first & set(model.asked)
    assert twice
    assert {sum(text.encode()) % 13 for text in twice} <= set(FAILING)
    assert sorted(first | set(model.asked)) == before


def test_what_was_said_is_read_back_but_for_a_line_that_a_kill_cut(tmp_path: Path) -> None:
    path = tmp_path / "said" / "00000.jsonl"
    assert read_said(path) == {}
    replies = {"a": Reply("one\nline \u2028", 3, 4), "b": Reply(failure="refused")}
    for key, reply in replies.items():
        add_said(path, key, reply)
    with path.open("a") as file:
        file.write('["c", {"text": "cu')
    assert read_said(path) == replies


def test_requests_are_laid_out_as_tokens_and_what_is_open_is_told(tmp_path: Path) -> None:
    requests = [
        Request(({"role": "user", "content": text},), {"type": "object"}, n) for n, text in enumerate("xy")
    ]
    told = Told("vllm", {"model": "m"}, {})
    assert [reply.failure for reply in told.complete(requests)] == ["unasked", "unasked"]
    write_asked(tmp_path / "asked.parquet", told.open, [[1, 2], [3]])
    rows = pq.read_table(tmp_path / "asked.parquet").to_pylist()
    assert [(row["tokens"], row["sample"], row["schema"]) for row in rows] == [
        ([1, 2], 0, '{"type": "object"}'),
        ([3], 1, '{"type": "object"}'),
    ]
    again = Told("vllm", {"model": "m"}, {rows[1]["key"]: Reply("hello", 1, 1)})
    assert [reply.text or reply.failure for reply in again.complete(requests)] == ["unasked", "hello"]


def test_an_outage_stops_it_with_words(
    model: Quick,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "answer", lambda tokens: Reply(failure="refused"))
    batch = replace(laid_out(tmp_path, source, "ray"), arm="naive")
    with pytest.raises(
        EngineError, match=r"16 of the 16 pairs of 00000\.parquet got no reply \(refused 16\)"
    ):
        run_batch(batch)


def test_the_engine_of_a_teacher_runs_no_code_of_the_models_own() -> None:
    with pytest.raises(ConfigError, match=r"trust_remote_code is not set here.*never run"):
        load_config(overrides={"cot.teacher_engine": {"trust_remote_code": True}})
    assert load_config(overrides={"cot.teacher_engine": {"tensor_parallel_size": 2}}).cot.teacher_engine
