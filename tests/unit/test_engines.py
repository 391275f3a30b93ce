"""The engines agree: the same greedy completions token by token, the same counts, reasons and rows."""

from collections.abc import Callable
from dataclasses import replace
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


@pytest.fixture
def server(ending: Path, serve_model: Callable[[Path, str], Any]) -> Any:
    return serve_model(ending, "tuned")


async def at_once(seconds: float) -> None:
    await anyio.lowlevel.checkpoint()


def client(server: Any, **settings: Any) -> ServerEngine:
    return ServerEngine("tuned", "models/tuned", server.url, server.tokenizer, sleep=at_once, **settings)


@pytest.fixture
def hf(ending: Path) -> HfEngine:
    return HfEngine(load_model(str(ending)), load_tokenizer(str(ending)))


def test_a_server_and_the_local_engine_agree_token_by_token(server: Any, hf: HfEngine) -> None:
    expected = hf.generate(PROMPTS, GREEDY)
    assert {g.finish_reason for row in expected for g in row} == {"stop", "length"}
    assert client(server).generate(PROMPTS, GREEDY) == expected
    assert [g.tokens for row in expected for g in row] != [GREEDY.max_completion_tokens] * 6
    assert client(server).generate([], GREEDY) == []


def test_tokens_are_counted_here_where_the_server_does_not(server: Any, hf: HfEngine) -> None:
    once = replace(GREEDY, max_completion_tokens=1)
    server.counts_tokens = False
    assert client(server).generate(PROMPTS[1:2], once) == hf.generate(PROMPTS[1:2], once)


def test_a_server_continues_a_text_token_by_token_and_tells_their_probabilities(
    server: Any, hf: HfEngine
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
def test_processes_deal_the_drawing_out_and_draw_what_one_would(server: Any, hf: HfEngine, size: int) -> None:
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
    more_than_a_step_reads = vllm.generate(PROMPTS * 60, Sampling(n=8, max_completion_tokens=2))
    assert [len(row) for row in more_than_a_step_reads] == [8] * 180
    del vllm
    adapted = open_vllm(str(adapter), hf.tokenizer, "float32", enforce_eager=True)
    expected = HfEngine(load_model(str(adapter)), hf.tokenizer).generate(PROMPTS, GREEDY)
    assert adapted.generate(PROMPTS, GREEDY) == expected


def test_the_rows_of_a_job_are_the_same_whoever_generates(server: Any, ending: Path, tmp_path: Path) -> None:
    pairs = pd.DataFrame({"pair_id": list("abc"), "query_id": "q", "prompt": PROMPTS})
    prompts = write_parquet(pairs, tmp_path / "prompts.parquet")
    local = SampleJob("tuned", str(ending), prompts, tmp_path / "hf.parquet", GREEDY)
    remote = replace(local, out=tmp_path / "openai.parquet", engine="openai", url=server.url)
    rows = [read_parquet(run_sample_job(job)) for job in (local, remote)]
    pd.testing.assert_frame_equal(*rows)


def test_every_completion_has_its_own_seed_which_is_the_same_each_time(server: Any) -> None:
    for _ in range(2):
        client(server).generate(PROMPTS, GREEDY)
    seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds)) == 6
    assert sorted(seeds[:6]) == sorted(seeds[6:])
    client(server).generate(PROMPTS[:1], replace(GREEDY, first=3))
    assert not {body["seed"] for body in server.bodies[12:]} & set(seeds)


def test_the_whole_distribution_is_asked_for_and_a_server_that_knows_no_such_word_is_asked_without(
    server: Any, hf: HfEngine
) -> None:
    client(server).generate(PROMPTS[:1], GREEDY)
    assert {(body["top_k"], body["min_p"], body["repetition_penalty"]) for body in server.bodies} == {
        (0, 0.0, 1.0)
    }
    server.trouble = lambda number, body: (400, "Unrecognized: top_k") if "top_k" in body else (200, "")
    assert client(server).generate(PROMPTS, GREEDY) == hf.generate(PROMPTS, GREEDY)


def test_a_passing_trouble_is_waited_out_and_a_lasting_one_leaves_nothing_half(
    server: Any, hf: HfEngine
) -> None:
    server.trouble = lambda number, body: (503 if number < 3 else 200, "")
    assert client(server).generate(PROMPTS, GREEDY) == hf.generate(PROMPTS, GREEDY)
    server.trouble = lambda number, body: (500 if body["messages"][0]["content"] == "query: x" else 200, "")
    with pytest.raises(EngineError, match=r"2 of 6 calls to .* brought no.*2 x server_error.*run again"):
        client(server, attempts=2).generate(PROMPTS, GREEDY)


def test_a_server_that_dies_between_two_parts_loses_none(
    server: Any, ending: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_another_models_answers_are_not_taken(server: Any) -> None:
    server.names = ["somebody-else", "another"]
    with pytest.raises(
        EngineError, match="serves 'somebody-else', 'another' and not 'tuned'; start it with 'vllm"
    ):
        client(server).generate(PROMPTS, GREEDY)
    assert not server.bodies
    server.names = ["another", "models/tuned"]
    client(server).generate(PROMPTS, GREEDY)
    assert {body["model"] for body in server.bodies} == {"models/tuned"}


def test_a_server_that_is_not_there_is_named_with_the_command_that_starts_it(server: Any) -> None:
    away = client(server, attempts=1)
    server.stop()
    with pytest.raises(EngineError, match=r"does not answer \(no connection.* 'vllm serve models/tuned"):
        away.generate(PROMPTS, GREEDY)


@pytest.mark.parametrize("url", ["ftp://host/v1", "http://me:pass@host/v1"])
def test_a_url_of_another_shape_is_refused(hf: HfEngine, url: str) -> None:
    with pytest.raises(EngineError, match=r"sampling\.url must be"):
        ServerEngine("tuned", "models/tuned", url, hf.tokenizer)
