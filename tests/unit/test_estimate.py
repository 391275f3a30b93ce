"""What a training will need, reckoned before it starts, against the real thing."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from lore_lib.config import load_config
from lore_lib.errors import EngineError
from lore_lib.sampling.engine import load_model
from lore_lib.training import estimate
from lore_lib.training.estimate import (
    GIB,
    grpo_needs,
    model_shape,
    require_memory,
    sft_needs,
    training_needs,
)
from lore_lib.training.sft import lora_config

SMALL = {"vocab_size": 301, "hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3}


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
    assert (needs.weights, needs.gradients, needs.moments) == (2 * parameters, 2 * parameters, 4 * parameters)


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
        for how in ({}, {"shards": 8}, {"recomputes": True})
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
        (60, {"model.lora_rank": 0}, "lower sft.pairs_at_once, or tune an adapter (model.lora_rank=32), or"),
        (
            40,
            {"model.lora_rank": 0},
            "adapter (model.lora_rank=32), or shard it (runtime.processes=8",
        ),
    ],
)
def test_a_training_that_cannot_fit_is_refused_with_what_helps_in_order(
    monkeypatch: pytest.MonkeyPatch, free: int, settings: dict[str, int], helps: str
) -> None:
    monkeypatch.setattr(estimate, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(estimate, "device_bytes", lambda config: free * GIB)
    config = load_config("paper", overrides=settings)
    with pytest.raises(EngineError, match=rf"7,615\.6 M parameters, and there are {free}\.0 GiB: ") as told:
        require_memory(sft_needs(config), config)
    assert helps in str(told.value)


def test_the_paper_profile_fits_one_gpu_of_80_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(estimate, "device_bytes", lambda config: 79 * GIB)
    for settings in ({}, {"model.lora_rank": 0}):
        config = load_config("paper", overrides=settings)
        require_memory(sft_needs(config), config)
        require_memory(grpo_needs(config), config)


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
    config = load_config(overrides={"sampling.batch_completions": 20, "grpo.completions_per_prompt": 8})
    written, prompt, rows = config.sampling.max_completion_tokens, 30, 16
    ids = torch.zeros(rows, prompt + written, dtype=torch.long)
    with torch.no_grad():
        cache = AutoModelForCausalLM.from_config(shape)(ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert grpo_needs(config, prompt).cache == held + rows * 301 * 4 * 3


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
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], helps: str
) -> None:
    monkeypatch.setattr(estimate, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(estimate, "device_bytes", lambda config: 79 * GIB)
    config = load_config("paper", overrides=settings)
    with pytest.raises(EngineError, match=r"cache .*and there are 79\.0 GiB: ") as told:
        require_memory(grpo_needs(config), config)
    assert helps in str(told.value)
