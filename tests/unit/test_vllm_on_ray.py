"""vLLM engines behind ``ray.data.llm`` write what an engine in this process writes."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from lore_lib.config import load_config
from lore_lib.cot.batch import prepare_batch, run_batch
from lore_lib.cot.on_ray import end_tokens
from lore_lib.cot.synthesis import REASONS, read_traces

NANO = Path(__file__).resolve().parents[2] / "data" / "models" / "lore-nano"
PAIRS, SHARD = 10, 6


def test_the_tokens_that_end_a_reply_are_those_of_tokenizer_and_generation_config(tmp_path: Path) -> None:
    tokenizer = json.loads((NANO / "tokenizer_config.json").read_text())
    assert tokenizer["eos_token"] == "<|im_end|>"
    plain = end_tokens(str(NANO))
    assert len(plain) >= 1
    copy = shutil.copytree(NANO, tmp_path / "model")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    assert end_tokens(str(copy)) == plain | {3, 5}


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_ray_and_this_process_write_the_same_bytes(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}.items():
        monkeypatch.setenv(name, value)
    model = shutil.copytree(NANO, tmp_path / "model")
    facts = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(facts | {"max_position_embeddings": 1200}))
    chosen = {
        "cot.pairs": PAIRS,
        "cot.teacher": "vllm",
        "cot.teacher_model": str(model),
        "cot.teacher_max_tokens": 24,
        "cot.teacher_engine": {"enforce_eager": True, "max_num_seqs": 16},
        "runtime.workers": 1,
    }
    config = load_config("smoke", overrides=chosen)
    alone = prepare_batch(tmp_path / "alone", source, config, "naive", SHARD)
    on_ray = load_config("smoke", overrides=chosen | {"runtime.engine": "ray"})
    spread = prepare_batch(tmp_path / "spread", source, on_ray, "naive", SHARD)
    run_batch(spread)
    run_batch(alone)
    traces = read_traces(spread.folder)
    pd.testing.assert_frame_equal(traces, read_traces(alone.folder))
    for name in ("manifest.json", "traces/00000.parquet", "traces/00001.parquet"):
        assert (spread.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    assert len(traces) == PAIRS
    assert set(traces.reason) <= set(REASONS)
    assert (traces.completion_tokens > 0).any()
