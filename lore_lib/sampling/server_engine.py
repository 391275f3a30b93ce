"""Sampling from a running OpenAI-compatible server, such as ``vllm serve``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import httpx
from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase

from lore_lib.endpoint import CALL_FAILURES, Answer, CallFailed, Clock, Endpoint, Limits, Result, Sleep
from lore_lib.errors import EngineError
from lore_lib.sampling.engine import Drawn, Generation, Sampling, resolve_model

TIMEOUT_SECONDS = 600.0
"""For one completion, its wait in the server's queue included."""


class _Model(BaseModel):
    id: str
    root: str | None = None


class _Models(BaseModel):
    data: list[_Model]


class _Scores(BaseModel):
    token_logprobs: list[float]


class _Continued(BaseModel):
    token_ids: list[int]
    logprobs: _Scores


class _Tokens(BaseModel):
    """The part of a completion of vLLM's that is read."""

    choices: list[_Continued] = Field(min_length=1)


class ServerEngine:
    """One call for each completion, ``Sampling.batch_completions`` in flight; the server shares the prefix.

    The server must list the system's name, the model's name or its folder among its models, so that no other
    model's answers are taken for this one's. It applies its own chat template.

    Args:
        system: name of the system, as in ``vllm serve <folder> --served-model-name <system>`` or
            ``--lora-modules <system>=<folder>``.
        model: folder or hub name.
        url: up to and with ``/v1``.
        tokenizer: of the model; counts tokens where the server does not.
        attempts: tries per call.
        setting: where the URL comes from, for messages.
        clock, sleep: in seconds.

    Raises:
        EngineError: a URL of another shape.
    """

    name = "openai"

    def __init__(
        self,
        system: str,
        model: str,
        url: str,
        tokenizer: PreTrainedTokenizerBase,
        attempts: int = 6,
        setting: str = "sampling.url",
        clock: Clock = time.monotonic,
        sleep: Sleep = anyio.sleep,
    ) -> None:
        self.tokenizer = tokenizer
        self._system, self._model, self._url, self._attempts = system, model, url, attempts
        self._setting = setting
        self._time = {"clock": clock, "sleep": sleep}
        self._endpoint(1)  # a bad URL is told before any work
        self._served = ""
        self._extras = True

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Generation]]:
        """See :class:`lore_lib.sampling.engine.Engine`."""
        if not prompts:
            return []
        endpoint = self._endpoint(sampling.batch_completions)
        self._served = self._served or self._name_there(endpoint)

        async def ask(client: httpx.AsyncClient, call: int) -> Generation | str:
            place, sample = divmod(call, sampling.n)
            return await self._ask(endpoint, client, prompts[place], place, sample, sampling)

        def failed(failure: str) -> Generation | str:
            return failure

        drawn = endpoint.batch(len(prompts) * sampling.n, ask, failed, lambda place, result: None)
        came, n = self._all(drawn), sampling.n
        return [came[start : start + n] for start in range(0, len(came), n)]

    def draw(
        self, texts: Sequence[str], sampling: Sampling, share: tuple[int, int] = (0, 1)
    ) -> list[list[Drawn]]:
        """See :class:`lore_lib.sampling.engine.Engine`; one call for each text, of a vLLM server alone."""
        mine = range(share[0], len(texts), share[1])
        drawn: list[list[Drawn]] = [[] for _ in texts]
        if not mine:
            return drawn
        endpoint = self._endpoint(max(1, sampling.batch_completions // sampling.n))
        self._served = self._served or self._name_there(endpoint)
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

        async def ask(client: httpx.AsyncClient, call: int) -> list[Drawn] | str:
            return await self._continue(endpoint, client, ids[mine[call]], mine[call], sampling)

        came = endpoint.batch(len(mine), ask, lambda failure: failure, lambda place, result: None)
        for place, group in zip(mine, self._all(came), strict=True):
            drawn[place] = group
        return drawn

    async def _continue(
        self, endpoint: Endpoint, client: httpx.AsyncClient, ids: list[int], place: int, sampling: Sampling
    ) -> list[Drawn]:
        body = {
            "model": self._served,
            "prompt": ids,
            "n": sampling.n,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "max_tokens": sampling.max_completion_tokens,
            "seed": sampling.seed_of(place, 0),  # vLLM counts on from it for the other samples
            "logprobs": 0,  # of the tokens drawn alone
            "return_token_ids": True,
            **_WHOLE,
        }
        said = await endpoint.call(client, "completions", _Tokens, body)
        return [Drawn(choice.token_ids, choice.logprobs.token_logprobs) for choice in said.choices]

    def _all(self, drawn: list[Result | str]) -> list[Result]:
        """What came, if all of it did: missing completions would change what pass@k or a rollout is."""
        missing = Counter(each for each in drawn if isinstance(each, str))
        if missing:
            reasons = "; ".join(f"{count} x {name}: {CALL_FAILURES[name]}" for name, count in missing.items())
            raise EngineError(
                f"{missing.total()} of {len(drawn)} calls to {self._url} brought no completion ({reasons}). "
                "See to the server and run again: finished parts are kept"
            )
        return [each for each in drawn if not isinstance(each, str)]

    def _endpoint(self, concurrency: int) -> Endpoint:
        limits = Limits(concurrency, timeout_seconds=TIMEOUT_SECONDS, attempts=self._attempts)
        return Endpoint(self._url, self._setting, limits, **self._time)  # type: ignore[arg-type]

    def _name_there(self, endpoint: Endpoint) -> str:
        """The name under which the server has this system's model."""

        async def ask(client: httpx.AsyncClient, place: int) -> _Models | str:
            return await endpoint.call(client, "models", _Models)

        (listed,) = endpoint.batch(1, ask, lambda failure: failure, lambda place, result: None)
        if isinstance(listed, str):
            raise EngineError(
                f"{self._setting}={self._url} does not answer ({CALL_FAILURES[listed]}); start it with "
                f"'vllm serve {self._model} --served-model-name \"{self._system}\"'"
            )
        path = resolve_model(self._model)
        wanted = (self._system, self._model, path)
        for model in listed.data:
            if model.id in wanted or model.root in (self._model, path):
                return model.id
        raise EngineError(
            f"{self._url} serves {', '.join(repr(model.id) for model in listed.data) or 'nothing'} and not "
            f"{self._system!r}; start it with 'vllm serve {self._model} --served-model-name "
            f'"{self._system}"\', or add --lora-modules "{self._system}"=<adapter folder>'
        )

    async def _ask(
        self,
        endpoint: Endpoint,
        client: httpx.AsyncClient,
        prompt: str,
        place: int,
        sample: int,
        sampling: Sampling,
    ) -> Generation:
        extras = self._extras
        body: dict[str, Any] = {
            "model": self._served,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "max_tokens": sampling.max_completion_tokens,
            "seed": sampling.seed_of(place, sample),
        }
        if extras:  # vLLM's own: the whole distribution, and the text as it is
            body |= _WHOLE
        try:
            said = await endpoint.call(client, "chat/completions", Answer, body)
        except CallFailed as error:
            if extras and error.failure == "refused" and any(name in error.said for name in _WHOLE):
                self._extras = False
                return await self._ask(endpoint, client, prompt, place, sample, sampling)
            raise
        text, reason = said.choices[0].message.content or "", said.choices[0].finish_reason or "stop"
        if said.usage:
            return Generation(text, said.usage.completion_tokens, reason)
        counted = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Generation(text, counted + (reason == "stop"), reason)


_WHOLE = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False}
