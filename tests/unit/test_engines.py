"""The engines agree: the same greedy completions token by token, the same counts, reasons and rows."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.errors import EngineError
from lore_lib.sampling import engine as engines
from lore_lib.sampling.engine import (
    HfEngine,
    SampleJob,
    Sampling,
    chat_text,
    load_model,
    load_tokenizer,
    run_sample_job,
)
from lore_lib.sampling.server_engine import ServerEngine

GREEDY = Sampling(n=2, temperature=0.0, max_completion_tokens=16, batch_completions=6)
PROMPTS = ["query: navy dress\ntitle: soft dress", "query: x", "query: 纯棉 sheet\ntitle: 👗 [L4]</think>"]


@pytest.fixture(scope="module")
def ending(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model some of whose greedy completions end: larger weights, the end token made likelier."""
    folder = tmp_path_factory.mktemp("ending")
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    with torch.no_grad():
        for weights in model.model.layers.parameters():
            weights.mul_(8 if weights.ndim == 2 else 1)
        while (
            len(
                {g.finish_reason for row in HfEngine(model, tokenizer).generate(PROMPTS, GREEDY) for g in row}
            )
            < 2
        ):
            model.model.embed_tokens.weight[tokenizer.eos_token_id] *= 1.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(ending: Path, tmp_path: Path) -> Path:
    """A PEFT adapter that changes what the model says, with its tokenizer beside it."""
    model = get_peft_model(load_model(str(ending)), LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "adapter")
    load_tokenizer(str(ending)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


class Server:
    """Decodes greedily, one forward pass for each token: as plain as can be, and none of ours.

    ``trouble(number of the call, body)`` may return a status instead.
    """

    def __init__(self, model: Path, name: str) -> None:
        self.model, self.tokenizer = load_model(str(model)), load_tokenizer(str(model))
        self.names = [name]
        self.bodies: list[dict[str, Any]] = []
        self.trouble: Callable[[int, dict[str, Any]], tuple[int, str]] = lambda number, body: (200, "")
        self.counts_tokens = True
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.say(200, {"data": [{"id": name} for name in server.names]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.bodies.append(body)
                    status, said = server.trouble(len(server.bodies) - 1, body)
                    answer = server.complete(body) if status == 200 else {"error": said}
                self.say(status, answer)

            def say(self, status: int, value: Any) -> None:
                sent = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if "prompt" in body:
            return {"choices": [self.choice(body) for _ in range(body["n"])]}
        text = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        start, end = len(ids), self.tokenizer.eos_token_id
        said, _ = self.decode(ids, body["max_tokens"])
        text = self.tokenizer.decode(said[:-1] if said[-1] == end else said)
        reason = "stop" if said[-1] == end else "length"
        answer: dict[str, Any] = {"choices": [{"message": {"content": text}, "finish_reason": reason}]}
        if self.counts_tokens:
            answer["usage"] = {"prompt_tokens": start, "completion_tokens": len(said)}
        return answer

    def choice(self, body: dict[str, Any]) -> dict[str, Any]:
        """As vLLM answers where tokens are asked for."""
        said, scores = self.decode(body["prompt"], body["max_tokens"])
        return {"token_ids": said, "logprobs": {"token_logprobs": scores}, "text": ""}

    def decode(self, prompt: list[int], most: int) -> tuple[list[int], list[float]]:
        ids, scores = list(prompt), []
        while len(scores) < most and (not scores or ids[-1] != self.tokenizer.eos_token_id):
            with torch.no_grad():
                at = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
            ids.append(int(at.argmax()))
            scores.append(float(at.max()))
        return ids[len(prompt) :], scores

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(ending: Path) -> Iterator[Server]:
    running = Server(ending, "tuned")
    yield running
    running.stop()


async def at_once(seconds: float) -> None:
    await anyio.lowlevel.checkpoint()


def client(server: Server, **settings: Any) -> ServerEngine:
    return ServerEngine("tuned", "models/tuned", server.url, server.tokenizer, sleep=at_once, **settings)


@pytest.fixture
def hf(ending: Path) -> HfEngine:
    return HfEngine(load_model(str(ending)), load_tokenizer(str(ending)))


def test_a_server_and_the_local_engine_agree_token_by_token(server: Server, hf: HfEngine) -> None:
    expected = hf.generate(PROMPTS, GREEDY)
    assert {g.finish_reason for row in expected for g in row} == {"stop", "length"}
    assert client(server).generate(PROMPTS, GREEDY) == expected
    assert [g.tokens for row in expected for g in row] != [GREEDY.max_completion_tokens] * 6
    assert client(server).generate([], GREEDY) == []


def test_tokens_are_counted_here_where_the_server_does_not(server: Server, hf: HfEngine) -> None:
    once = replace(GREEDY, max_completion_tokens=1)
    server.counts_tokens = False
    assert client(server).generate(PROMPTS[1:2], once) == hf.generate(PROMPTS[1:2], once)


def test_a_server_continues_a_text_token_by_token_and_tells_their_probabilities(
    server: Server, hf: HfEngine
) -> None:
    texts = [chat_text(hf.tokenizer, prompt) for prompt in PROMPTS]
    expected = hf.draw(texts, GREEDY)
    drawn = client(server).draw(texts, GREEDY)
    assert [[one.tokens for one in group] for group in drawn] == [
        [one.tokens for one in group] for group in expected
    ]
    for group in drawn:
        for one in group:
            assert one.logprobs is not None
            assert len(one.logprobs) == len(one.tokens)
            assert max(one.logprobs) < 0
    sent = server.bodies[0]
    assert (sent["n"], sent["logprobs"], sent["return_token_ids"]) == (2, 0, True)
    assert len({body["seed"] for body in server.bodies}) == len(PROMPTS), "one seed for each prompt"


@pytest.mark.parametrize("size", [2, 6])
def test_processes_deal_the_drawing_out_and_draw_what_one_would(
    server: Server, hf: HfEngine, size: int
) -> None:
    texts = [chat_text(hf.tokenizer, prompt) for prompt in PROMPTS]
    sampling = Sampling(n=2, max_completion_tokens=8, batch_completions=size)
    for engine in (hf, client(server)):
        whole = engine.draw(texts, sampling)
        parts = [engine.draw(texts, sampling, (process, 2)) for process in (0, 1)]
        assert [one or other for one, other in zip(*parts, strict=True)] == whole
        assert not any(one and other for one, other in zip(*parts, strict=True))
    assert all(any(part) for part in parts), "a server takes texts one by one"
    assert client(server).draw([], sampling) == hf.draw([], sampling) == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_folder_with_an_adapter_is_its_base_with_the_adapter_on(adapter: Path, hf: HfEngine) -> None:
    adapted = HfEngine(load_model(str(adapter)), load_tokenizer(str(adapter)))
    assert adapted.generate(PROMPTS, GREEDY) != hf.generate(PROMPTS, GREEDY)


@pytest.mark.vllm
def test_vllm_and_the_local_engine_agree_token_by_token(
    ending: Path, adapter: Path, hf: HfEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lore_lib.sampling.vllm_engine import open_vllm

    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
        monkeypatch.setenv(name, value)
    vllm = open_vllm(str(ending), hf.tokenizer, "float32", enforce_eager=True)
    assert vllm.generate(PROMPTS, GREEDY) == hf.generate(PROMPTS, GREEDY)
    drawn = Sampling(n=4, max_completion_tokens=8, seed=5)
    first = vllm.generate(PROMPTS, drawn)
    assert vllm.generate(PROMPTS, drawn) == first
    assert vllm.generate(PROMPTS, replace(drawn, seed=6)) != first
    assert all(len({g.text for g in row}) > 1 for row in first)
    del vllm
    adapted = open_vllm(str(adapter), hf.tokenizer, "float32", enforce_eager=True)
    expected = HfEngine(load_model(str(adapter)), hf.tokenizer).generate(PROMPTS, GREEDY)
    assert adapted.generate(PROMPTS, GREEDY) == expected


def test_the_rows_of_a_job_are_the_same_whoever_generates(
    server: Server, ending: Path, tmp_path: Path
) -> None:
    pairs = pd.DataFrame({"pair_id": list("abc"), "query_id": "q", "prompt": PROMPTS})
    prompts = write_parquet(pairs, tmp_path / "prompts.parquet")
    local = SampleJob("tuned", str(ending), prompts, tmp_path / "hf.parquet", GREEDY)
    remote = replace(local, out=tmp_path / "openai.parquet", engine="openai", url=server.url)
    rows = [read_parquet(run_sample_job(job)) for job in (local, remote)]
    pd.testing.assert_frame_equal(*rows)


def test_every_completion_has_its_own_seed_which_is_the_same_each_time(server: Server) -> None:
    for _ in range(2):
        client(server).generate(PROMPTS, GREEDY)
    seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds)) == 6
    assert sorted(seeds[:6]) == sorted(seeds[6:])
    client(server).generate(PROMPTS[:1], replace(GREEDY, first=3))
    assert not {body["seed"] for body in server.bodies[12:]} & set(seeds)


def test_the_whole_distribution_is_asked_for_and_a_server_that_knows_no_such_word_is_asked_without(
    server: Server, hf: HfEngine
) -> None:
    client(server).generate(PROMPTS[:1], GREEDY)
    assert {(body["top_k"], body["min_p"], body["repetition_penalty"]) for body in server.bodies} == {
        (0, 0.0, 1.0)
    }
    server.trouble = lambda number, body: (400, "Unrecognized: top_k") if "top_k" in body else (200, "")
    assert client(server).generate(PROMPTS, GREEDY) == hf.generate(PROMPTS, GREEDY)


def test_a_passing_trouble_is_waited_out_and_a_lasting_one_leaves_nothing_half(
    server: Server, hf: HfEngine
) -> None:
    server.trouble = lambda number, body: (503 if number < 3 else 200, "")
    assert client(server).generate(PROMPTS, GREEDY) == hf.generate(PROMPTS, GREEDY)
    server.trouble = lambda number, body: (500 if body["messages"][0]["content"] == "query: x" else 200, "")
    with pytest.raises(EngineError, match=r"2 of 6 calls to .* brought no.*2 x server_error.*run again"):
        client(server, attempts=2).generate(PROMPTS, GREEDY)


def test_a_server_that_dies_between_two_parts_loses_none(
    server: Server, ending: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "PART_BATCHES", 1)
    pairs = pd.DataFrame({"pair_id": list("abc"), "query_id": "q", "prompt": PROMPTS})
    prompts = write_parquet(pairs, tmp_path / "prompts.parquet")
    two_pairs = replace(GREEDY, batch_completions=2 * GREEDY.n)
    job = SampleJob(
        "tuned", str(ending), prompts, tmp_path / "out.parquet", two_pairs, engine="openai", url=server.url
    )
    server.trouble = lambda number, body: (400 if number >= 4 else 200, "gone")
    with pytest.raises(EngineError, match="2 x refused"):
        run_sample_job(job)
    server.trouble = lambda number, body: (200, "")
    assert read_parquet(run_sample_job(job)).pair_id.tolist() == list("aabbcc")
    assert len(server.bodies) == 4 + 2 + 2


def test_another_models_answers_are_not_taken(server: Server) -> None:
    server.names = ["somebody-else", "another"]
    with pytest.raises(
        EngineError, match="serves 'somebody-else', 'another' and not 'tuned'; start it with 'vllm"
    ):
        client(server).generate(PROMPTS, GREEDY)
    assert not server.bodies
    server.names = ["another", "models/tuned"]
    client(server).generate(PROMPTS, GREEDY)
    assert {body["model"] for body in server.bodies} == {"models/tuned"}


def test_a_server_that_is_not_there_is_named_with_the_command_that_starts_it(server: Server) -> None:
    away = client(server, attempts=1)
    server.stop()
    with pytest.raises(EngineError, match=r"does not answer \(no connection.* 'vllm serve models/tuned"):
        away.generate(PROMPTS, GREEDY)


@pytest.mark.parametrize("url", ["ftp://host/v1", "http://me:pass@host/v1"])
def test_a_url_of_another_shape_is_refused(hf: HfEngine, url: str) -> None:
    with pytest.raises(EngineError, match=r"sampling\.url must be"):
        ServerEngine("tuned", "models/tuned", url, hf.tokenizer)
