"""From a config to the teacher and the synthesis of an arm."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lore_lib.completion import LABEL_FIRST, label_first
from lore_lib.config import Config, CotConfig
from lore_lib.cot.chat import ChatModel, Draw, HfChat, VllmChat
from lore_lib.cot.endpoint import OpenAIChat
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.replies import ReplyCache
from lore_lib.cot.staged import StagedTeacher, Usage
from lore_lib.cot.synthesis import STAGES_OF, WITHOUT, Synthesis
from lore_lib.cot.teacher import SymbolicTeacher
from lore_lib.endpoint import Limits
from lore_lib.vertical.definition import Vertical


def open_chat_model(config: Config) -> ChatModel | None:
    """The chat model of ``cot.teacher``, for all arms; None for the symbolic teacher, which needs none.

    Raises:
        EngineError: there is no such model, or the URL is none.
    """
    cot = config.cot
    draw = Draw(cot.teacher_temperature, cot.teacher_max_tokens, config.seed)
    if cot.teacher == "symbolic":
        return None
    if cot.teacher == "vllm":
        return VllmChat(cot.teacher_model, draw, **{"dtype": config.model.dtype, **cot.teacher_engine})
    if cot.teacher == "hf":
        from lore_lib.sampling.engine import HfEngine, load_model, load_tokenizer

        model = load_model(cot.teacher_model, config.model.dtype, config.model.device)
        return HfChat(HfEngine(model, load_tokenizer(cot.teacher_model)), cot.teacher_model, draw)
    limits = Limits(
        concurrency=cot.teacher_concurrency,
        requests_per_minute=cot.teacher_requests_per_minute or math.inf,
        tokens_per_minute=cot.teacher_tokens_per_minute or math.inf,
        timeout_seconds=cot.teacher_timeout_seconds,
        attempts=cot.teacher_attempts,
    )
    return OpenAIChat(cot.teacher_model, cot.teacher_url, draw, limits)


def open_synthesis(
    config: Config,
    arm: str,
    vertical: Vertical,
    knowledge: KnowledgeIndex,
    model: ChatModel | None = None,
    cache: ReplyCache | None = None,
) -> Synthesis:
    """The synthesis of one arm.

    Chains that disagree with the label are dropped where the teacher had all the evidence its arm is about,
    and treated as ``cot.naive_disagreement`` has it where a stage was left out on purpose.

    Args:
        config: teacher and funnel.
        arm: "direct", a key of ``STAGES_OF``, or "label_first": progressive chains turned round.
        vertical: vocabularies and rules.
        knowledge: what clicks and merchants say.
        model: from :func:`open_chat_model`.
        cache: keeps the model's replies.
    """
    if arm == LABEL_FIRST:
        return _LabelFirst(**vars(open_synthesis(config, "progressive", vertical, knowledge, model, cache)))
    cot = config.cot
    disagreement = cot.naive_disagreement if arm == "naive" or arm in WITHOUT else "drop"
    if arm == "direct":
        return Synthesis(arm, None, disagreement, cot.max_words)
    stages = STAGES_OF[arm]
    if model is None:
        symbolic = SymbolicTeacher(vertical, stages, knowledge)
        return Synthesis(arm, symbolic, disagreement, cot.max_words)
    staged = StagedTeacher(model, vertical, stages, cache=cache, samples=cot.teacher_samples)
    return Synthesis(arm, staged, disagreement, cot.max_words, knowledge)


def write_arms(
    writers: Mapping[str, Synthesis], rows: pd.DataFrame, cot: CotConfig
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """The traces of each arm, and what writing them took.

    Args:
        writers: arm -> its synthesis.
        rows: from :func:`lore_lib.cot.synthesis.pair_rows`.
        cot: prices of the teacher's tokens.

    Returns:
        Traces by arm; and a row for each arm: pairs, kept, calls that went to the model, calls that an
        earlier arm or run had paid for (``cached``), tokens read and written, those of cached calls
        included, their cost by the prices (what the arm would cost alone), and seconds of this run.
    """
    written, costs = {}, {}
    for arm, writer in writers.items():
        start = time.perf_counter()
        traces = written[arm] = writer(rows)
        seconds = time.perf_counter() - start
        spent = writer.teacher.spending() if isinstance(writer.teacher, StagedTeacher) else pd.DataFrame()
        read, wrote = int(traces["prompt_tokens"].sum()), int(traces["completion_tokens"].sum())
        costs[arm] = {
            "pairs": len(traces),
            "kept": int(traces["kept"].sum()),
            "calls": int(spent.get("calls", pd.Series(dtype=int)).sum()),
            "cached": int(spent.get("cached", pd.Series(dtype=int)).sum()),
            "tokens read": read,
            "tokens written": wrote,
            "cost": Usage(prompt_tokens=read, completion_tokens=wrote).cost(
                cot.teacher_prompt_price, cot.teacher_completion_price
            ),
            "seconds": seconds,
        }
    return written, pd.DataFrame.from_dict(costs, orient="index").rename_axis("arm")


class _LabelFirst(Synthesis):
    """Progressive chains, each with its label before the reasoning."""

    @property
    def identity(self) -> dict[str, Any]:
        return super().identity | {"arm": LABEL_FIRST}

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        written = super().__call__(rows)
        return written.assign(arm=LABEL_FIRST, completion=written.completion.map(label_first))
