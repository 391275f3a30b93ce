"""A real vLLM server as a teacher: models too small to teach give counted failures, and no poison."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from lore_lib.completion import parse
from lore_lib.cot.chat import Draw, Request
from lore_lib.cot.endpoint import OpenAIChat
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.replies import ReplyCache
from lore_lib.cot.staged import StagedTeacher
from lore_lib.cot.synthesis import REASONS, Synthesis, in_shards, pair_rows, read_traces, synthesise_to
from lore_lib.cot.teacher import STAGES
from lore_lib.endpoint import CALL_FAILURES, Limits
from lore_lib.vertical.definition import Vertical

MODEL = Path(__file__).resolve().parents[2] / "data" / "models" / "lore-nano"
PORT, PATIENCE = 18473, 280

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@contextmanager
def serving(model: Path, name: str, port: int, log_folder: Path, *more: str) -> Iterator[str]:
    """The address of a vLLM server on this machine."""
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--dtype", "float32", "--enforce-eager", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--max-num-seqs", "16", *more]
    log = (log_folder / "server.log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | settings)
    try:
        until = time.monotonic() + PATIENCE
        while not _up(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, Path(log.name).read_text()[-2000:]
            assert time.monotonic() < until, Path(log.name).read_text()[-2000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over lore-nano, which is made to read more than its own 512 tokens."""
    longer = ("--hf-overrides", '{"max_position_embeddings": 8192}')
    with serving(MODEL, "nano", PORT, tmp_path_factory.mktemp("nano"), *longer) as address:
        yield address


@pytest.fixture(scope="module")
def smol_url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over SmolLM2-135M-Instruct, a real if small chat model."""
    context = ("--max-model-len", "4096")
    with serving(smollm2, "smol", PORT + 1, tmp_path_factory.mktemp("smol"), *context) as address:
        yield address


def _up(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def chat(url: str, tokens: int, model: str = "nano") -> OpenAIChat:
    return OpenAIChat(
        model, url, Draw(0.0, tokens, 17), Limits(concurrency=8, timeout_seconds=120, attempts=2)
    )


def test_replies_come_with_their_tokens_and_are_the_same_again(url: str) -> None:
    request = Request(
        ({"role": "user", "content": "query: navy dress\ntitle: navy dress"},), {"type": "object"}
    )
    first, second = chat(url, 24).complete([request, request])
    assert first == second
    assert first.prompt_tokens > 5
    assert 0 < first.completion_tokens <= 24


@pytest.fixture
def rows(
    world_tables: dict[str, pd.DataFrame], prompts: pd.DataFrame, captions: "pd.Series[Any]"
) -> pd.DataFrame:
    """Eight train pairs to teach."""
    return pair_rows(world_tables, prompts[prompts.split == "train"], captions).head(8)


def test_a_model_that_cannot_answer_is_counted_and_never_taught(
    url: str,
    rows: pd.DataFrame,
    vertical: Vertical,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    teacher = StagedTeacher(chat(url, 48), vertical, (), cache=ReplyCache(tmp_path / "replies.sqlite"))
    began = time.monotonic()
    synthesise_to(tmp_path / "out", in_shards(rows, 4), Synthesis("naive", teacher, "drop"))
    seconds = time.monotonic() - began
    traces = read_traces(tmp_path / "out")
    assert len(traces) == len(rows)
    assert not set(traces.reason) & set(CALL_FAILURES)  # the server answered every time
    assert set(traces.reason) <= set(REASONS)
    assert not traces.kept.any()
    usage = teacher.spent["naive"]
    assert (usage.calls, usage.failed) == (8, 8)
    assert usage.completion_tokens > 0
    counts = traces.reason.value_counts().to_dict()
    record_property("measured", {"seconds": seconds, "reasons": counts})


@pytest.mark.smollm2
def test_what_a_small_real_model_teaches_is_sound_or_refused_by_name(
    smol_url: str,
    rows: pd.DataFrame,
    vertical: Vertical,
    world_tables: dict[str, pd.DataFrame],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    rows = rows.head(6)
    index = KnowledgeIndex(world_tables["items"], world_tables["clicks"], 5, 3)
    for arm, stages in (("naive", ()), ("progressive", STAGES)):
        cache = ReplyCache(tmp_path / f"{arm}.sqlite")
        teacher = StagedTeacher(chat(smol_url, 200, "smol"), vertical, stages, cache=cache)
        synthesis = Synthesis(arm, teacher, "drop", knowledge=index)
        synthesise_to(tmp_path / arm, in_shards(rows, 3), synthesis)
        traces = read_traces(tmp_path / arm)
        assert len(traces) == len(rows)
        assert set(traces.reason) <= set(REASONS) - set(CALL_FAILURES)
        assert "not_json" not in set(traces.reason)  # the server holds it to the schema, or cuts it
        kept = traces[traces.kept]
        assert kept.completion.map(lambda text: parse(text).label).tolist() == kept.label.tolist()
        usage = pd.DataFrame([vars(one) for one in teacher.spent.values()]).sum()
        assert usage.calls >= len(rows)
        assert len(cache) == usage.calls - usage.failed
        assert usage.completion_tokens > 20 * usage.calls
        record_property(arm, traces.reason.value_counts().to_dict())
