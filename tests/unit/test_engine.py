"""Sampling: batches with a shared prefix give what one prompt alone would give, reproducibly and in order."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import GenerationConfig
from transformers.utils import logging

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.config import load_config
from lore_lib.errors import EngineError
from lore_lib.sampling.engine import (
    SAMPLE_COLUMNS,
    HfEngine,
    SampleJob,
    Sampling,
    chat_text,
    load_model,
    load_tokenizer,
    read_tokens,
    run_sample_job,
    run_sample_jobs,
    sample_job,
    sample_pairs,
)

GREEDY = Sampling(n=2, temperature=0.0, max_completion_tokens=24, batch_completions=8)
DRAWN = Sampling(n=4, temperature=1.0, max_completion_tokens=12, batch_completions=16, seed=5)
PROMPTS = [
    "query: navy dress\ntitle: Relo soft dress\nprice: 40",
    "query: x",
    "query: matcha frock for women under 40\ntitle: new gown\ncpv: color mint, material linen\nprice: 44",
    "query: 纯棉 sheet\ntitle: 👗",
    "query: not leather boots\ntitle: Vikka hot boots",
]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> HfEngine:
    return HfEngine(load_model(str(tiny_model)), load_tokenizer(str(tiny_model)))


@pytest.fixture(scope="module")
def wandering(tiny_model: Path) -> HfEngine:
    """Small random weights repeat one token for ever; larger ones wander. The end token is made likelier
    until some chains come to an end."""
    engine = HfEngine(load_model(str(tiny_model)), load_tokenizer(str(tiny_model)))
    with torch.no_grad():
        for weights in engine.model.model.layers.parameters():
            weights.mul_(8 if weights.ndim == 2 else 1)
        while {g.finish_reason for row in engine.generate(PROMPTS, GREEDY) for g in row} == {"length"}:
            engine.model.model.embed_tokens.weight[engine.tokenizer.eos_token_id] *= 1.1
    return engine


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_text_whose_tokens_are_those_of_the_template_itself(
    engine: HfEngine, prompt: str
) -> None:
    """Asked for tokens, transformers 5 gives a BatchEncoding, which does not count as a list does."""
    text = chat_text(engine.tokenizer, prompt)
    assert type(text) is str
    turn = [{"role": "user", "content": prompt}]
    asked = engine.tokenizer.apply_chat_template(
        turn, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    assert engine.tokenizer(text, add_special_tokens=False)["input_ids"] == asked["input_ids"]


def alone(engine: HfEngine, prompt: str, tokens: int) -> list[int]:
    """Greedy tokens of one prompt, one forward pass over the whole text for each token."""
    text = chat_text(engine.tokenizer, prompt)
    ids: list[int] = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(engine.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == engine.tokenizer.eos_token_id:
            break
    return ids[start:]


def test_greedy_batches_of_unequal_prompts_equal_plain_decoding_token_by_token(wandering: HfEngine) -> None:
    for prompt, drawn in zip(PROMPTS, wandering.generate(PROMPTS, GREEDY), strict=True):
        expected = alone(wandering, prompt, GREEDY.max_completion_tokens)
        ended = expected[-1] == wandering.tokenizer.eos_token_id
        assert [g.text for g in drawn] == [wandering.tokenizer.decode(expected[: -1 if ended else None])] * 2
        assert [g.tokens for g in drawn] == [len(expected)] * 2


def test_completions_that_end_early_leave_the_others_as_they_were(
    wandering: HfEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = wandering.generate(PROMPTS, GREEDY)
    assert {g.finish_reason for row in expected for g in row} == {"stop", "length"}
    for size in (1, 5, 100):
        monkeypatch.setattr("lore_lib.sampling.engine.SLICE_TOKENS", size)
        assert wandering.generate(PROMPTS, GREEDY) == expected


def test_loading_draws_no_bars_and_leaves_the_bars_of_others(
    tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_model(str(tiny_model))
    assert capfd.readouterr() == ("", "")
    list(logging.tqdm([1], desc="mine"))
    assert "mine" in capfd.readouterr().err


def test_a_job_follows_the_config_but_for_what_is_said(tmp_path: Path) -> None:
    config = load_config(overrides={"sampling.n": 4, "sampling.k": 4, "model.device": "cpu"})
    files = {"prompts": tmp_path / "in", "out": tmp_path / "out"}
    job = sample_job(config, "direct", tmp_path, **files)
    assert (job.sampling.n, job.sampling.temperature, job.sampling.seed) == (4, 1.0, 17)
    assert (job.model, job.device) == (str(tmp_path), "cpu")
    once = sample_job(config, "direct", tmp_path, **files, n=1, temperature=0.0)
    assert once.sampling == replace(job.sampling, n=1, temperature=0.0)


def test_the_order_of_the_prompts_is_kept_whatever_the_batches(engine: HfEngine) -> None:
    forwards = engine.generate(PROMPTS, GREEDY)
    assert engine.generate(PROMPTS[::-1], GREEDY) == forwards[::-1]
    assert engine.generate(PROMPTS, replace(GREEDY, batch_completions=1)) == forwards
    assert engine.generate([PROMPTS[0]] * 3, GREEDY) == [forwards[0]] * 3


def test_no_prompts_give_no_completions(engine: HfEngine) -> None:
    assert engine.generate([], GREEDY) == []


def test_the_same_seed_draws_the_same_samples_and_leaves_the_global_stream_alone(engine: HfEngine) -> None:
    before = torch.get_rng_state()
    first = engine.generate(PROMPTS, DRAWN)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert engine.generate(PROMPTS, DRAWN) == first
    assert engine.generate(PROMPTS, replace(DRAWN, seed=6)) != first
    assert [len(row) for row in first] == [4] * 5
    assert all(len({g.text for g in row}) > 1 for row in first), "samples of one prompt differ"


def test_samples_follow_the_models_own_distribution(engine: HfEngine) -> None:
    """First tokens of many draws against the softmax of the logits: no top-k, no top-p, temperature 1."""
    ids = engine.tokenizer(chat_text(engine.tokenizer, PROMPTS[0]), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = engine.model(ids).logits[0, -1].softmax(-1)
    drawn = engine.generate([PROMPTS[0]], Sampling(n=4000, max_completion_tokens=1, batch_completions=4000))[
        0
    ]
    texts = engine.tokenizer.batch_decode([[i] for i in range(len(expected))])
    ids_of = {
        text: i for i, text in enumerate(texts) if texts.count(text) == 1
    }  # bytes of a character are not
    readable = torch.zeros_like(expected, dtype=torch.bool)
    readable[list(ids_of.values())] = True
    rare = readable & (expected < expected[readable].median())
    found = [ids_of[g.text] for g in drawn if g.text in ids_of]
    share = sum(bool(rare[i]) for i in found) / len(found)
    assert share == pytest.approx(float(expected[rare].sum() / expected[readable].sum()), abs=0.03)
    assert share > 0.2


def test_a_completion_stops_at_the_end_token_or_at_the_length(engine: HfEngine) -> None:
    end, pad = engine.tokenizer.eos_token_id, engine.tokenizer.pad_token_id
    word = engine.tokenizer("navy")["input_ids"]
    read = read_tokens(engine.tokenizer, engine._to_end([*word, end, pad, pad]))
    assert (read.text, read.tokens, read.finish_reason) == ("navy", len(word) + 1, "stop")
    read = read_tokens(engine.tokenizer, word)
    assert (read.text, read.tokens, read.finish_reason) == ("navy", len(word), "length")
    read = read_tokens(engine.tokenizer, engine._to_end([end, pad]))
    assert (read.text, read.tokens, read.finish_reason) == ("", 1, "stop")
    many = engine.generate(PROMPTS, replace(DRAWN, n=16, max_completion_tokens=100, batch_completions=80))
    reasons = {g.finish_reason for row in many for g in row}
    assert reasons == {"stop", "length"}
    assert all((g.tokens == 100) >= (g.finish_reason == "length") for row in many for g in row)
    assert not any("<|im_end|>" in g.text for row in many for g in row)


def test_pairs_become_rows_with_the_contracts_columns(engine: HfEngine) -> None:
    pairs = pd.DataFrame({"pair_id": ["a", "b"], "query_id": ["q", "r"], "prompt": PROMPTS[:2]})
    rows = sample_pairs(engine, pairs, "base", DRAWN)
    assert rows.columns.tolist() == SAMPLE_COLUMNS
    assert rows.pair_id.tolist() == ["a"] * 4 + ["b"] * 4
    assert rows["sample"].tolist() == [0, 1, 2, 3] * 2
    assert ((rows.label == "") == (rows.parse_kind != "ok")).all()


def test_what_a_model_ships_as_its_defaults_does_not_reach_the_samples(engine: HfEngine) -> None:
    """Qwen2.5 ships top_k=20, top_p=0.8 and repetition_penalty=1.05, others more."""
    plain = [engine.generate(PROMPTS, how) for how in (GREEDY, DRAWN)]
    before, engine.model.generation_config = engine.model.generation_config, GenerationConfig(
        do_sample=True, top_k=2, top_p=0.5, min_p=0.5, temperature=0.1, repetition_penalty=9.0,
        no_repeat_ngram_size=2, eos_token_id=[5, 6, 7],
    )  # fmt: skip
    try:
        assert [engine.generate(PROMPTS, how) for how in (GREEDY, DRAWN)] == plain
    finally:
        engine.model.generation_config = before


def test_a_prompt_that_leaves_no_room_in_the_context_is_named(engine: HfEngine) -> None:
    prompts = ["query: x", "query: " + "navy dress " * 300, "query: y"]
    with pytest.raises(EngineError, match=r"1 of 3 prompts .* context of 512; the longest is prompt 1 with"):
        engine.generate(prompts, GREEDY)


def test_too_little_memory_names_the_two_settings_in_order(
    engine: HfEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "_batch", full)
    with pytest.raises(EngineError, match=r"8 completions .*batch_completions, then .*max_completion_tokens"):
        engine.generate(PROMPTS, GREEDY)


def test_a_tokenizer_of_another_model_is_refused(engine: HfEngine) -> None:
    tokenizer = copy.deepcopy(engine.tokenizer)
    tokenizer.add_tokens([f"word{i}" for i in range(200)])
    with pytest.raises(EngineError, match="they are of different models"):
        HfEngine(engine.model, tokenizer)


def test_a_long_job_that_is_killed_keeps_its_parts_and_draws_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pd.DataFrame({"pair_id": list("abcde"), "query_id": "q", "prompt": PROMPTS[0]})
    prompts = write_parquet(pairs, tmp_path / "prompts.parquet")
    two_pairs = replace(DRAWN, batch_completions=8)
    job = SampleJob("base", str(tiny_model), prompts, tmp_path / "whole.parquet", two_pairs)
    monkeypatch.setattr("lore_lib.sampling.engine.PART_BATCHES", 1)
    whole = read_parquet(run_sample_job(job))
    assert whole.pair_id.tolist() == [name for name in "abcde" for _ in range(4)]
    assert len(set(whole.completion[:8])) > 4, "parts draw from streams of their own"
    killed, seen = replace(job, out=tmp_path / "killed.parquet"), []

    def until_the_third(engine: HfEngine, rows: pd.DataFrame, *rest: Any) -> pd.DataFrame:
        seen.append(rows.pair_id.tolist())
        if len(seen) == 3:
            raise KeyboardInterrupt
        return sample_pairs(engine, rows, *rest)

    monkeypatch.setattr("lore_lib.sampling.engine.sample_pairs", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_sample_job(killed)
    pd.testing.assert_frame_equal(read_parquet(run_sample_job(killed)), whole)
    assert seen == [["a", "b"], ["c", "d"], ["e"], ["e"]]
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [
        "killed.parquet", "prompts.parquet", "whole.parquet",
    ]  # fmt: skip


def test_the_samples_do_not_depend_on_which_worker_draws_which_part_when(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"p{i}" for i in range(40)]
    pairs = pd.DataFrame({"pair_id": ids, "query_id": "q", "prompt": [PROMPTS[i % 5] for i in range(40)]})
    prompts = write_parquet(pairs, tmp_path / "prompts.parquet")
    how = Sampling(n=2, max_completion_tokens=6, batch_completions=2, seed=5)
    jobs = [
        SampleJob(name, str(tiny_model), prompts, tmp_path / f"{name}.parquet", how) for name in ("a", "b")
    ]
    drawn: list[Any] = []

    def last_first(work: Any, pieces: list[Any], *_: object) -> None:
        drawn.extend(pickle.loads(pickle.dumps(piece)) for piece in pieces[::-1])
        for piece in drawn:
            work(piece)

    monkeypatch.setattr("lore_lib.sampling.engine.run_parallel", last_first)
    shared = [read_parquet(path) for path in run_sample_jobs(jobs, workers=3)]
    assert [(job.system, first) for job, first in drawn] == [(name, i) for name in "ba" for i in (32, 16, 0)]
    alone = read_parquet(run_sample_job(replace(jobs[0], out=tmp_path / "alone.parquet")))
    assert alone.pair_id.tolist() == [name for name in ids for _ in range(2)]
    pd.testing.assert_frame_equal(shared[0], alone)
    pd.testing.assert_frame_equal(shared[1], alone.assign(system="b"))
    assert sorted(path.stem for path in tmp_path.glob("*.parquet")) == ["a", "alone", "b", "prompts"]


def test_an_engine_that_batches_for_itself_does_a_whole_job_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pd.DataFrame({"pair_id": ["a", "b"], "query_id": "q", "prompt": PROMPTS[:2]})
    prompts = write_parquet(pairs, tmp_path / "prompts.parquet")
    small = Sampling(n=2, batch_completions=2)
    jobs = [
        SampleJob(engine, "m", prompts, tmp_path / f"{engine}.parquet", small, engine=engine)
        for engine in ("hf", "vllm", "openai")
    ]
    asked: list[tuple[str, int | None]] = []
    monkeypatch.setattr("lore_lib.sampling.engine.PART_BATCHES", 1)
    monkeypatch.setattr(
        "lore_lib.sampling.engine.run_parallel",
        lambda work, pieces, *_: asked.extend((job.engine, first) for job, first in pieces),
    )
    monkeypatch.setattr("lore_lib.sampling.engine.run_sample_job", lambda job: job.out)
    assert run_sample_jobs(jobs, 3) == [job.out for job in jobs]
    assert asked == [("hf", 0), ("hf", 1), ("vllm", None), ("openai", None)]


def test_a_finished_job_is_not_done_again(tiny_model: Path, tmp_path: Path) -> None:
    pairs = pd.DataFrame({"pair_id": ["a"], "query_id": ["q"], "prompt": [PROMPTS[0]]})
    prompts = write_parquet(pairs, tmp_path / "prompts.parquet")
    job = SampleJob("base", str(tiny_model), prompts, tmp_path / "out.parquet", DRAWN)
    assert len(read_parquet(run_sample_job(job))) == 4
    assert run_sample_job(replace(job, model="gone")) == job.out


@pytest.mark.parametrize("base", ["data/models/absent", "nobody/absent", "absent"])
def test_a_missing_model_is_named(base: str) -> None:
    with pytest.raises(EngineError, match=f"no model at '{base}'"):
        load_model(base)
    with pytest.raises(EngineError, match=f"no tokenizer at '{base}'"):
        load_tokenizer(base)


def test_a_tokenizer_without_chat_template_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(EngineError, match="has no chat template"):
        load_tokenizer(str(tmp_path))
