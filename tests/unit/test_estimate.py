"""What a training will need, reckoned before it starts, against the real thing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from lore_lib.config import load_config
from lore_lib.errors import EngineError
from lore_lib.sampling.engine import load_model
from lore_lib.training import estimate
from lore_lib.training.estimate import (
    GIB,
    device_bytes,
    grpo_needs,
    model_shape,
    require_memory,
    sft_needs,
    training_needs,
)
from lore_lib.training.sft import lora_config

SMALL = {"vocab_size": 301, "hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes as if there were a GPU with so many GiB free, of at least 80."""

    def show(free: int) -> None:
        monkeypatch.setattr(estimate, "resolve_device", lambda device: "cuda")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * GIB, max(free, 80) * GIB))

    return show


@pytest.mark.parametrize(
    ("base", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
    ],
)
def test_the_students_of_the_profiles_have_the_parameters_that_their_cards_say(
    base: str, parameters: int
) -> None:
    needs = training_needs(model_shape(base), "bfloat16", 1, 8, 4, 8)
    assert needs.parameters == parameters
    assert (needs.weights, needs.gradients, needs.moments) == (4 * parameters, 4 * parameters, 8 * parameters)


def test_full_tuning_takes_16_bytes_a_parameter_and_2_for_the_copy_of_autocast_on_one_gpu() -> None:
    shape = model_shape("Qwen/Qwen2.5-7B-Instruct")
    for dtype in ("float32", "bfloat16"):
        alone, shared = (training_needs(shape, dtype, 1, 8, 4, 8, cuda=True, shards=n) for n in (1, 8))
        assert alone.fixed == 18 * alone.parameters
        assert shared.fixed == 16 * shared.parameters // 8
    adapted = training_needs(shape, "bfloat16", 1, 8, 4, 8, lora_rank=32, cuda=True)
    assert adapted.fixed == 2 * adapted.parameters + 16 * adapted.trained


@pytest.mark.parametrize("shape", [Qwen2Config(**SMALL, **HEADS), LlamaConfig(**SMALL, **HEADS)])
@pytest.mark.parametrize("tied", [True, False])
def test_reckoned_activations_are_what_autograd_saves(shape: PreTrainedConfig, tied: bool) -> None:
    shape.tie_word_embeddings = tied
    model = AutoModelForCausalLM.from_config(shape).model
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(torch.randint(0, 301, (4, 64)), use_cache=False).last_hidden_state
    assert out.requires_grad
    needs = training_needs(shape, "float32", 4, 64, 20, 1)
    assert needs.activations == pytest.approx(sum(saved.values()), rel=0.15)


def test_an_adapter_is_as_large_as_peft_makes_it() -> None:
    from peft import get_peft_model

    shape = Qwen2Config(**SMALL, **HEADS)
    adapted = get_peft_model(AutoModelForCausalLM.from_config(shape), lora_config(8))
    real = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    needs = training_needs(shape, "bfloat16", 1, 8, 4, 8, lora_rank=8)
    assert needs.trained == real
    assert (needs.gradients, needs.moments) == (4 * real, 8 * real)


def test_sharding_recomputation_and_smaller_parts_each_save_what_they_should() -> None:
    shape = model_shape("Qwen/Qwen2.5-7B-Instruct")
    whole, shared, again = (
        training_needs(shape, "bfloat16", 4, 4096, 1000, 1, **how)
        for how in ({}, {"shards": 8}, {"cuda": True})
    )
    assert shared.weights == whole.weights // 8
    assert shared.activations == whole.activations
    assert again.activations < whole.activations / 10
    assert again.operations == pytest.approx(whole.operations * 8 / 6)
    half = training_needs(shape, "bfloat16", 2, 4096, 1000, 1)
    assert half.activations == whole.activations / 2


@pytest.mark.parametrize(
    ("free", "settings", "helps"),
    [
        (80, {"sft.pairs_at_once": 64}, "lower sft.pairs_at_once, or take a smaller model.base"),
        (
            139,
            {"model.lora_rank": 0, "sft.pairs_at_once": 64},
            "lower sft.pairs_at_once, or tune an adapter (model.lora_rank=32), or take",
        ),
        (
            79,
            {"model.lora_rank": 0},
            "GiB: tune an adapter (model.lora_rank=32), or shard it (runtime.processes=8, "
            "runtime.accelerate=fsdp2), or take",
        ),
    ],
)
def test_a_training_that_cannot_fit_is_refused_with_what_helps_in_order(
    gpu: Callable[[int], None], free: int, settings: dict[str, int], helps: str
) -> None:
    gpu(free)
    config = load_config("paper", overrides=settings)
    with pytest.raises(EngineError, match=rf"7,615\.6 M parameters, and there are {free}\.0 GiB: ") as told:
        require_memory(sft_needs(config), config)
    assert helps in str(told.value)


def test_the_paper_profile_fits_one_gpu_of_80_gb_and_all_its_weights_fit_eight(
    gpu: Callable[[int], None],
) -> None:
    gpu(79)
    shared = {"model.lora_rank": 0, "runtime.processes": 8, "runtime.accelerate": "fsdp2"}
    for settings in ({}, {"grpo.engine": "hf"}, shared):
        config = load_config("paper", overrides=settings)
        require_memory(sft_needs(config), config)
        require_memory(grpo_needs(config), config)


def test_the_memory_of_a_gpu_is_what_is_free_of_it_over_the_trainings_at_once(
    gpu: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(60)
    for processes, workers, each in ((1, 1, 60), (1, 3, 20), (8, 3, 60)):
        together = {"runtime.processes": processes, "runtime.workers": workers}
        assert device_bytes(load_config(overrides=together)) == each * GIB
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="torch sees no GPU"):
        device_bytes(load_config())


def test_who_draws_decides_what_is_held_beside_the_model(
    gpu: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(60)  # of 80
    needs = {
        engine: grpo_needs(load_config("paper", overrides={"grpo.engine": engine}))
        for engine in ("hf", "vllm", "server")
    }
    assert (needs["hf"].engine, needs["vllm"].engine, needs["server"].engine) == (0, 24 * GIB, 0)
    assert needs["hf"].cache > 0
    assert needs["vllm"].cache == needs["server"].cache == 0
    assert needs["vllm"].bytes == needs["server"].bytes + 24 * GIB
    assert "engine 24.0" in str(needs["vllm"])
    assert "engine" not in str(needs["hf"])
    monkeypatch.setattr(estimate, "resolve_device", lambda device: "cpu")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    beside = grpo_needs(load_config(overrides={"grpo.engine": "vllm", "runtime.workers": 1}))
    assert beside.engine == 2 * GIB + 4 * beside.parameters


def test_the_time_of_grpo_counts_refills_a_second_scoring_and_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Qwen2Config(**SMALL, **HEADS)
    monkeypatch.setattr(estimate, "model_shape", lambda base: shape)
    monkeypatch.setattr(estimate, "resolve_device", lambda device: "cpu")
    settings = {
        "grpo.prompts_per_rollout": 4,
        "grpo.completions_per_prompt": 8,
        "grpo.rollouts": 10,
        "grpo.probe_every_rollouts": 5,
        "grpo.probe_pairs": 16,
        "grpo.probe_completions": 4,
    }
    completions, row = 10 * 4 * 8, 256
    per_token = training_needs(shape, "float32", 1, row, 168, 1).operations / 6  # of one pass, per 1 of 6
    # each completion: trained on (6), drawn 2.4 times and scored once (2 each); three looks of 64 more
    by_hand = per_token * row * (completions * (6 + 2 * (1 + 1.4) + 2) + 2 * 3 * 64)
    assert grpo_needs(load_config(overrides=settings)).operations == pytest.approx(by_hand)
    once = load_config(overrides=settings | {"grpo.max_refills": 0})
    without = per_token * row * (completions * (6 + 2 + 2) + 2 * 3 * 64)
    assert grpo_needs(once).operations == pytest.approx(without)


def test_the_default_run_fits_a_laptop() -> None:
    config = load_config("demo")
    assert grpo_needs(config).bytes < 2 * GIB
    require_memory(grpo_needs(config), config)
    needs = sft_needs(config)
    model = load_model(config.model.base)
    assert needs.parameters == sum(weight.numel() for weight in model.parameters())
    assert needs.bytes < GIB
    require_memory(needs, config)


def test_a_rollouts_cache_is_as_large_as_transformers_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Qwen2Config(**SMALL, **HEADS)
    monkeypatch.setattr(estimate, "model_shape", lambda base: shape)
    sizes = {"sampling.batch_completions": 20, "grpo.completions_per_prompt": 8}
    config = load_config(overrides=sizes | {"sft.max_sequence_tokens": 198})
    rows = 16
    ids = torch.zeros(rows, 198, dtype=torch.long)
    with torch.no_grad():
        cache = AutoModelForCausalLM.from_config(shape)(ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert grpo_needs(config).cache == held + rows * 301 * 4 * 3


def test_grpo_takes_an_update_or_a_draw_whichever_is_larger_and_names_its_knob_first() -> None:
    many = {"grpo.prompts_per_rollout": 64}
    drawing = load_config(
        overrides=many | {"sampling.batch_completions": 512, "grpo.micro_batch_completions": 1}
    )
    updating = load_config(overrides=many | {"sampling.batch_completions": 8})
    one, other = grpo_needs(drawing), grpo_needs(updating)
    assert one.bytes == one.fixed + one.rollout + one.cache
    assert other.bytes == other.fixed + other.rollout + other.activations + other.logits
    assert one.knobs == ("sampling.batch_completions", "grpo.micro_batch_completions") == other.knobs[::-1]
    twice = grpo_needs(
        load_config(overrides=many | {"sampling.batch_completions": 8, "runtime.processes": 2})
    )
    assert twice.rollout == other.rollout // 2


@pytest.mark.parametrize(
    ("settings", "helps"),
    [
        (
            {"grpo.engine": "vllm", "grpo.engine_memory": 0.9},
            "lower grpo.engine_memory, then grpo.micro_batch_completions, or take",
        ),
        (
            {"sampling.batch_completions": 2048},
            "lower sampling.batch_completions, then grpo.micro_batch_completions, or take",
        ),
        (
            {"grpo.micro_batch_completions": 512, "sampling.batch_completions": 16},
            "lower grpo.micro_batch_completions, then sampling.batch_completions, or take",
        ),
    ],
)
def test_a_grpo_run_that_cannot_fit_is_refused_with_two_knobs_in_order(
    gpu: Callable[[int], None], settings: dict[str, Any], helps: str
) -> None:
    gpu(79)
    config = load_config("paper", overrides={"grpo.engine": "hf"} | settings)
    with pytest.raises(EngineError, match=r"(cache|engine) .*and there are 79\.0 GiB: ") as told:
        require_memory(grpo_needs(config), config)
    assert helps in str(told.value)
