"""Chat models as the staged teacher sees them: a batch of conversations in, one reply for each."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from lore_lib.errors import EngineError
from lore_lib.rng import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lore_lib.sampling.engine import HfEngine

REPLY_FAILURES: dict[str, str] = {
    "truncated": "the reply was cut at the token limit",
    "filtered": "the endpoint's content filter held the reply back",
    "empty": "the reply holds no text",
}
"""Why a reply is of no use."""

Message = Mapping[str, Any]
"""``role`` (user or assistant) and ``content``: a text, or parts as OpenAI's protocol has them (``type`` text
or ``image_url`` with a base64 data URL)."""


@dataclass(frozen=True)
class Draw:
    """How replies are drawn.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: longer replies are cut, and so fail as "truncated".
        seed: root of the draws; each sample of a request has its own.
    """

    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 17

    def seed_of(self, sample: int) -> int:
        """The seed of one sample."""
        return derive_seed(self.seed, "teacher", sample)

    def identity(self, model: str) -> dict[str, Any]:
        """What decides the replies of a model, by its name, that are drawn so."""
        return {"model": model, **asdict(self)}


@dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        messages: the conversation, which ends with the user's turn.
        schema: JSON schema of the reply, for models that can be held to one.
        sample: number of the draw, for several replies to the same messages.
    """

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]
    sample: int = 0


@dataclass(frozen=True)
class Reply:
    """Its text and size; ``failure`` is "" or a key of ``endpoint.CALL_FAILURES`` or ``REPLY_FAILURES``."""

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: str = ""


def read_reply(text: str, prompt_tokens: int, completion_tokens: int, finish_reason: str | None) -> Reply:
    """A reply with the failure that its text and finish reason tell of."""
    failure = {"length": "truncated", "content_filter": "filtered"}.get(finish_reason or "", "")
    return Reply(text, prompt_tokens, completion_tokens, failure or ("" if text.strip() else "empty"))


Arrived = Callable[[int, Reply], None]
"""Told of each reply as it comes in, by its place in the batch."""


def ignore(place: int, reply: Reply) -> None:
    """Nobody waits for single replies."""


class ChatModel(Protocol):
    """A model that answers conversations."""

    @property
    def name(self) -> str:
        """Engine, as in ``cot.teacher``."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a reply, beside the request: model and draw; JSON values, no secrets."""

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """One reply per request, in order; a failed call is a reply with its failure.

        Raises:
            EngineError: no request can succeed, such as for want of a key.
        """


class HfChat:
    """A local transformers model.

    Args:
        engine: samples.
        model: its name, for the identity.
        draw: how replies are drawn.
        batch: conversations decoded at once.
    """

    name = "hf"

    def __init__(self, engine: HfEngine, model: str, draw: Draw, batch: int = 16) -> None:
        self._engine, self._draw, self._batch = engine, draw, batch
        self.identity = draw.identity(model)

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """See :class:`ChatModel`; the schema is not enforced."""
        replies: list[Reply] = [Reply()] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: requests[i].sample)
        for sample, group in groupby(order, key=lambda i: requests[i].sample):
            places = list(group)
            for start in range(0, len(places), self._batch):
                part = places[start : start + self._batch]
                for i, reply in zip(part, self._drawn([requests[i] for i in part], sample), strict=True):
                    replies[i] = reply
                    arrived(i, reply)
        return replies

    def _drawn(self, requests: list[Request], sample: int) -> list[Reply]:
        from lore_lib.sampling.engine import Sampling

        tokenizer = self._engine.tokenizer
        texts = [chat_text(tokenizer, request) for request in requests]
        sampling = Sampling(
            n=1,
            temperature=self._draw.temperature,
            max_completion_tokens=self._draw.max_tokens,
            batch_completions=self._batch,
            seed=self._draw.seed_of(sample),
        )
        drawn = self._engine.draw(texts, sampling)
        asked = _tokens(tokenizer, texts)
        return [
            read_reply(
                tokenizer.decode(one.tokens, skip_special_tokens=True),
                len(ids),
                len(one.tokens),
                "stop" if one.tokens[-1:] == [tokenizer.eos_token_id] else "length",
            )
            for ids, (one,) in zip(asked, drawn, strict=True)
        ]


class VlmChat:
    """A local transformers model that sees: any for ``AutoModelForImageTextToText``, such as Qwen2.5-VL.

    Weights are read from safetensors only, and no code of the model's own is run.

    Args:
        model: folder or hub name.
        draw: how replies are drawn.
        dtype, device: as in the model config.
        batch: conversations decoded at once.

    Raises:
        EngineError: no such model, or none that can be loaded on these terms.
    """

    name = "vlm"

    def __init__(
        self, model: str, draw: Draw, dtype: str = "float32", device: str = "auto", batch: int = 8
    ) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from lore_lib.device import resolve_device
        from lore_lib.sampling.engine import no_weight_bars, resolve_model

        where = resolve_model(model)
        try:
            with no_weight_bars():
                self._processor = AutoProcessor.from_pretrained(where)
                loaded = AutoModelForImageTextToText.from_pretrained(
                    where, dtype=getattr(torch, dtype), use_safetensors=True
                )
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
            raise EngineError(
                f"no image-text model at {model!r}: {error}. Give a local folder or a reachable hub name, "
                "with weights in safetensors; the processors of some models need torchvision (extra vlm)"
            ) from error
        self._net = loaded.to(resolve_device(device)).eval()
        self._processor.tokenizer.padding_side = "left"
        self._draw, self._batch = draw, batch
        self.identity = draw.identity(model)

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """See :class:`ChatModel`; the schema is not enforced."""
        replies: list[Reply] = []
        for start in range(0, len(requests), self._batch):
            for reply in self._drawn(requests[start : start + self._batch]):
                replies.append(reply)
                arrived(len(replies) - 1, reply)
        return replies

    def _drawn(self, requests: Sequence[Request]) -> list[Reply]:
        import torch

        inputs = self._processor.apply_chat_template(
            [[_seen(message) for message in request.messages] for request in requests],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._net.device)
        sampled = self._draw.temperature > 0
        how = {"temperature": self._draw.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}
        ends = self._net.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends, self._processor.tokenizer.eos_token_id])
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(self._draw.seed_of(requests[0].sample))
            sequences = self._net.generate(
                **inputs, max_new_tokens=self._draw.max_tokens, do_sample=sampled, **how
            )
        read = inputs["attention_mask"].sum(dim=1).tolist()
        written = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._reply(tokens, size, ends) for tokens, size in zip(written, read, strict=True)]

    def _reply(self, tokens: list[int], read: int, ends: set[int]) -> Reply:
        stop = next((place for place, token in enumerate(tokens) if token in ends), None)
        said = tokens if stop is None else tokens[: stop + 1]
        text = self._processor.tokenizer.decode(said, skip_special_tokens=True)
        return read_reply(text, read, len(said), "length" if stop is None else "stop")


def _seen(message: Message) -> dict[str, Any]:
    """A message whose data URLs are pictures."""
    if isinstance(message["content"], str):
        return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
    parts = [
        {"type": "image", "image": _picture(part["image_url"]["url"])}
        if part["type"] == "image_url"
        else part
        for part in message["content"]
    ]
    return {"role": message["role"], "content": parts}


def _picture(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


class VllmChat:
    """An offline vLLM engine, which is started when it is first asked; needs the extra ``vllm``.

    Args:
        model: folder or hub name.
        draw: how replies are drawn.
        batch: conversations given to the engine at once; those of a batch that a kill cuts are drawn anew.
        engine: further arguments of ``vllm.LLM``, such as ``tensor_parallel_size``.
    """

    name = "vllm"

    def __init__(self, model: str, draw: Draw, batch: int = 1024, **engine: Any) -> None:
        self.identity = draw.identity(model)
        self.draw, self.engine, self._model, self._batch = draw, engine, model, batch

    @property
    def where(self) -> str:
        """Absolute folder, or hub name."""
        from lore_lib.sampling.engine import resolve_model

        return resolve_model(self._model)

    @functools.cached_property
    def _llm(self) -> Any:
        try:
            from vllm import LLM
        except ImportError as error:
            raise EngineError(
                f"cot.teacher=vllm, but it cannot be imported ({error}): pip install lore-kit[vllm], or "
                "serve the model elsewhere and use cot.teacher=openai"
            ) from error
        return LLM(model=self.where, **self.engine)

    @functools.cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from lore_lib.sampling.engine import load_tokenizer

        return load_tokenizer(self._model)

    def tokens(self, requests: Sequence[Request]) -> list[list[int]]:
        """What the model reads of each request."""
        return _tokens(self._tokenizer, [chat_text(self._tokenizer, request) for request in requests])

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """See :class:`ChatModel`; the schema is enforced.

        Raises:
            EngineError: vLLM is not installed, or there is no such model.
        """
        replies: list[Reply] = []
        for start in range(0, len(requests), self._batch):
            for reply in self._drawn(requests[start : start + self._batch]):
                replies.append(reply)
                arrived(len(replies) - 1, reply)
        return replies

    def _drawn(self, requests: Sequence[Request]) -> list[Reply]:
        room = self._llm.model_config.max_model_len
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        replies = [Reply(failure="refused")] * len(requests)
        fit = {at: tokens for at, tokens in enumerate(self.tokens(requests)) if len(tokens) < room}
        how = []
        for at in fit:
            schema, sample = json.dumps(requests[at].schema), requests[at].sample
            settings = vllm_sampling(self.draw, schema, sample)
            held = StructuredOutputsParams(**settings.pop("structured_outputs"))
            how.append(SamplingParams(**settings, structured_outputs=held))
        asked = [TokensPrompt(prompt_token_ids=tokens) for tokens in fit.values()]
        for at, output in zip(
            fit, self._llm.generate(asked, how, use_tqdm=False) if fit else (), strict=True
        ):
            said = output.outputs[0]
            replies[at] = read_reply(said.text, len(fit[at]), len(said.token_ids), said.finish_reason)
        return replies


def vllm_sampling(draw: Draw, schema: str, sample: int) -> dict[str, Any]:
    """Arguments of vLLM's ``SamplingParams``, those of ``structured_outputs`` as a dict.

    Args:
        draw: how replies are drawn.
        schema: JSON schema of the reply, as JSON.
        sample: number of the draw.
    """
    return {
        "temperature": draw.temperature,
        "max_tokens": draw.max_tokens,
        "seed": draw.seed_of(sample),
        "structured_outputs": {"json": schema},
    }


def chat_text(tokenizer: PreTrainedTokenizerBase, request: Request) -> str:
    """A conversation in the model's chat template, up to where the assistant begins."""
    messages = [dict(message) for message in request.messages]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Without a beginning of their own: the chat template has set it."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return ids
