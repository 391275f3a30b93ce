"""A model behind HTTP, as a vLLM server would have it; tiny GRPO runs, and a reward in which they vary."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lore_lib.artifacts import write_parquet
from lore_lib.sampling.engine import load_model, load_tokenizer
from lore_lib.training.grpo_job import GrpoJob


class Server:
    """Decodes one forward pass for each token: as plain as can be, and none of ours.

    Chats are continued greedily, tokens also at a temperature, as vLLM does where weights are handed to it.

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
            return {"choices": [self.choice(body, sample) for sample in range(body["n"])]}
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

    def choice(self, body: dict[str, Any], sample: int) -> dict[str, Any]:
        """As vLLM answers where tokens are asked for."""
        draws = torch.Generator().manual_seed(body["seed"] % 2**32 + sample) if body["temperature"] else None
        said, scores = self.decode(body["prompt"], body["max_tokens"], draws)
        return {"token_ids": said, "logprobs": {"token_logprobs": scores}, "text": ""}

    def decode(
        self, prompt: list[int], most: int, draws: torch.Generator | None = None
    ) -> tuple[list[int], list[float]]:
        ids, scores = list(prompt), []
        while len(scores) < most and (not scores or ids[-1] != self.tokenizer.eos_token_id):
            with torch.no_grad():
                at = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
            ids.append(int(at.argmax() if draws is None else at.exp().multinomial(1, generator=draws)))
            scores.append(float(at[ids[-1]]))
        return ids[len(prompt) :], scores

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve_model() -> Iterator[Callable[[Path, str], Server]]:
    """Serves the model of a folder under a name, until the test ends."""
    running: list[Server] = []

    def serve(model: Path, name: str) -> Server:
        running.append(Server(model, name))
        return running[-1]

    yield serve
    for server in running:
        server.stop()


@pytest.fixture
def grpo_run(tiny_model: Path, tmp_path: Path) -> Callable[..., GrpoJob]:
    """Makes a run of the tiny model over a pool, whose first two pairs are its probe as well."""

    def make(pool: pd.DataFrame, **changes: Any) -> GrpoJob:
        job = GrpoJob(
            base=str(tiny_model),
            pool=write_parquet(pool, tmp_path / "pool.parquet"),
            probe=write_parquet(pool.head(2), tmp_path / "probe.parquet"),
            out=tmp_path / "out",
            prompts_per_rollout=2,
            completions_per_prompt=4,
            updates_per_rollout=2,
            rollouts=3,
            learning_rate=1e-2,
            epsilon=0.2,
            epsilon_high=0.28,
            temperature=1.0,
            max_completion_tokens=6,
            probe_every_rollouts=1,
            probe_n=2,
            seed=3,
        )
        return replace(job, **changes)

    return make


@pytest.fixture
def by_length() -> str:
    """Code for a process of its own: the outcome is paid by length, for a random model is never right."""
    return """
from lore_lib.training import grpo, launch

def by_length(completions, drawn=({},), log_metric=None, **_):
    for name, value in drawn[0].items():
        log_metric(name, value)
    return [float(len(text) % 3) for text in completions]

parts = grpo.reward_functions
grpo.reward_functions = lambda grading: [by_length, *parts(grading)[1:]]
"""
