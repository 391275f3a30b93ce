"""What a training will need, reckoned from the model's shape before a weight is read: memory and arithmetic.

Per device, with AdamW:

- of each trained parameter the weight, its gradient and two moments, in float32: 16 bytes. FSDP 2 and ZeRO-3
  come to as much, and shard it over the processes. Where all weights are tuned on one CUDA device, autocast
  keeps a bfloat16 copy of them through a forward pass: 2 bytes more. Under an adapter the base is held in
  its own type;
- activations, per token and layer: 8 hidden sizes, 4 intermediate ones, keys and values, as autograd keeps
  them for the Qwen2 and Llama blocks of transformers; with recomputation (on CUDA) each layer's input alone,
  and one layer in full;
- logits of the labelled positions, three times in float32 (scores, probabilities, gradient); on CUDA TRL
  makes them in pieces;
- of GRPO, a rollout's tokens, masks and old log-probabilities, held through its updates, and while it is
  drawn the keys and values of the completions decoded at once, with their next scores. Drawing and updates
  take turns, so the larger of the two counts. vLLM beside the model holds its share throughout, and a server
  nothing here.

Arithmetic is 6 floating-point operations per parameter and token (2 forward, 4 backward), 8 with
recomputation. GRPO draws more than it trains on (`REFILLS`), scores a rollout once more, and looks at dev
pairs.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from lore_lib.config import Config
from lore_lib.device import resolve_device
from lore_lib.errors import EngineError
from lore_lib.sampling.engine import resolve_model
from lore_lib.training.sft import share_batch, weights_type

GIB = 2**30
REFILLS = 1.4
"""Groups drawn in place of those without signal, per group trained on: measured with `lore-nano` on its pool
of hard pairs, an assumption elsewhere."""
_VLLM_CPU_GIB = "VLLM_CPU_KVCACHE_SPACE"  # vLLM's own setting in the environment, GiB
LOGITS_AT_ONCE = 1024  # positions whose logits TRL holds at once on CUDA; larger than its own number

_SHAPES: dict[str, PreTrainedConfig] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-7B-Instruct": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
    ),
}
"""Shapes of the students that the profiles name, to reckon with before anything is fetched."""


@dataclass(frozen=True)
class Needs:
    """Of one training, in bytes per device and floating-point operations in all.

    Attributes:
        parameters: of the model.
        trained: of them, or of the adapter.
        weights, gradients, moments, activations, logits: bytes per device at the largest batch.
        operations: of the whole training, over all devices.
        rollout: bytes of what GRPO keeps of a rollout through its updates.
        cache: bytes that drawing it takes, at another time than activations and logits.
        engine: bytes that vLLM beside the model holds throughout: its share of a GPU, or on a CPU its weights
            and the room for keys and values.
        knobs: settings that lower what a batch takes, the one to turn first in front.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    operations: float
    rollout: int = 0
    cache: int = 0
    engine: int = 0
    knobs: tuple[str, ...] = ("sft.pairs_at_once",)

    @property
    def fixed(self) -> int:
        """What no smaller batch lowers, on each device."""
        return self.weights + self.gradients + self.moments

    @property
    def bytes(self) -> int:
        """The most that is held at one time, on each device."""
        return self.fixed + self.engine + self.rollout + max(self.activations + self.logits, self.cache)

    def __str__(self) -> str:
        unit, name = (GIB, "GiB") if self.bytes >= GIB else (2**20, "MiB")
        parts = ["weights", "gradients", "moments", "activations", "logits"]
        parts += [part for part in ("rollout", "cache", "engine") if getattr(self, part)]
        each = ", ".join(f"{part} {getattr(self, part) / unit:.1f}" for part in parts)
        size = f"{self.parameters / 1e6:,.1f} M parameters"
        return f"{self.bytes / unit:.1f} {name} on each device ({each}) for {size}"


def model_shape(base: str) -> PreTrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        EngineError: it is neither here, nor known, nor on the hub.
    """
    if base in _SHAPES:
        return _SHAPES[base]
    try:
        return AutoConfig.from_pretrained(resolve_model(base))
    except OSError as error:
        raise EngineError(f"no configuration at {base!r}, so nothing can be reckoned: {error}") from error


def training_needs(
    shape: PreTrainedConfig,
    dtype: str,
    rows_at_once: int,
    row_tokens: int,
    labelled_tokens: int,
    tokens: float,
    lora_rank: int = 0,
    shards: int = 1,
    cuda: bool = False,
) -> Needs:
    """What one training needs.

    Args:
        shape: of the model.
        dtype: of the weights, as in the model config.
        rows_at_once: rows on a device.
        row_tokens: of the longest row.
        labelled_tokens: of them, those with a loss.
        tokens: read in the whole training, over all rows, epochs and devices.
        lora_rank: 0 trains all weights.
        shards: processes that weights, gradients and moments are spread over.
        cuda: whether on CUDA, where activations are recomputed backwards, and autocast computes in bfloat16.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    parameters = sum(weight.numel() for weight in model.parameters())
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    adapter = sum(lora_rank * (m.in_features + m.out_features) for m in linear)
    trained = adapter if lora_rank else parameters
    held = getattr(torch, weights_type(dtype, lora_rank)).itemsize
    width = torch.bfloat16.itemsize if cuda else held  # of what is computed; sums between layers are as held
    copy = width if cuda and not lora_rank and shards == 1 else 0
    s = shape.get_text_config()
    keys = 2 * s.num_key_value_heads * s.hidden_size // s.num_attention_heads
    layer = 4 * s.hidden_size * 4 + (4 * s.hidden_size + keys + 4 * s.intermediate_size) * width
    kept = s.num_hidden_layers * s.hidden_size * held + layer if cuda else s.num_hidden_layers * layer
    scored = rows_at_once * labelled_tokens
    matrices, share = sum(m.weight.numel() for m in linear), labelled_tokens / row_tokens
    return Needs(
        parameters=parameters,
        trained=trained,
        weights=(parameters * (held + copy) + adapter * 4) // shards,
        gradients=trained * 4 // shards,
        moments=2 * trained * 4 // shards,
        activations=rows_at_once * row_tokens * kept,
        logits=(min(scored, LOGITS_AT_ONCE) if cuda else scored) * s.vocab_size * 4 * 3,
        operations=tokens * (8 if cuda else 6) * (matrices + head.weight.numel() * share),
    )


def sft_needs(config: Config, longest: int = 0, labelled: int = 0, tokens: int = 0) -> Needs:
    """What the tuning of one arm needs.

    Args:
        config: model, sizes and processes.
        longest: tokens of the longest row; 0 takes the limit, ``sft.max_sequence_tokens``.
        labelled: tokens of the longest completion; 0 takes a third of that.
        tokens: of all rows; 0 takes ``cot.pairs`` rows of the longest.
    """
    s, runtime = config.sft, config.runtime
    longest = longest or s.max_sequence_tokens
    held, _ = share_batch(s.batch_pairs, runtime.processes, s.pairs_at_once)
    return training_needs(
        model_shape(config.model.base),
        config.model.dtype,
        held,
        longest,
        labelled or longest // 3,
        (tokens or config.cot.pairs * longest) * s.epochs,
        config.model.lora_rank,
        runtime.processes if runtime.accelerate in ("fsdp2", "zero3") else 1,
        resolve_device(config.model.device) == "cuda",
    )


def grpo_needs(config: Config) -> Needs:
    """What one GRPO run needs, if no look at dev pairs stops it and every row is as long as it may be.

    Raises:
        EngineError: no such model, or no GPU of which vLLM could take its share.
    """
    g, s, runtime, shape = config.grpo, config.sampling, config.runtime, model_shape(config.model.base)
    written = s.max_completion_tokens
    row = max(written + 1, config.sft.max_sequence_tokens)
    group = g.completions_per_prompt
    mine = g.prompts_per_rollout * group // runtime.processes
    updates = 1 if set(g.policies) == {"on_policy"} else g.updates_per_rollout
    cuda = resolve_device(config.model.device) == "cuda"
    trained = g.rollouts * g.prompts_per_rollout * group
    one = training_needs(
        shape,
        config.model.dtype,
        min(g.micro_batch_completions, max(1, mine // updates)),
        row,
        written,
        trained * row,
        config.model.lora_rank,
        runtime.processes if runtime.accelerate in ("fsdp2", "zero3") else 1,
        cuda,
    )
    looked = (1 + math.ceil(g.rollouts / g.probe_every_rollouts)) * g.probe_pairs * g.probe_completions
    drawn = 1 + (REFILLS if g.max_refills else 0) + looked / trained
    forward = drawn + 1  # what is trained on is scored once more, as it was drawn
    cache = engine = 0
    knobs: tuple[str, ...] = ("grpo.micro_batch_completions",)
    if g.engine == "hf":
        text, held = shape.get_text_config(), weights_type(config.model.dtype, config.model.lora_rank)
        keys = 2 * text.num_key_value_heads * text.hidden_size // text.num_attention_heads
        at_once = min(max(1, s.batch_completions // group) * group, mine)
        layers = text.num_hidden_layers * keys * getattr(torch, held).itemsize
        cache = at_once * (row * layers + text.vocab_size * 4 * 3)
        knobs = (*knobs, "sampling.batch_completions")
        knobs = knobs[::-1] if cache > one.activations + one.logits else knobs
    elif g.engine == "vllm" and cuda:
        engine = int(g.engine_memory * _gpu_bytes()[1])
        knobs = ("grpo.engine_memory", *knobs)
    elif g.engine == "vllm":
        room = int(os.environ.get(_VLLM_CPU_GIB, "4")) * GIB
        engine = room + one.parameters * getattr(torch, config.model.dtype).itemsize
        knobs = (_VLLM_CPU_GIB, *knobs)
    return replace(
        one,
        operations=one.operations * (1 + 2 * forward / (8 if cuda else 6)),
        rollout=mine * (row * (8 + 8) + written * (4 if g.engine == "hf" else 8)),  # vLLM's probabilities too
        cache=cache,
        engine=engine,
        knobs=knobs,
    )


def reckoned_minutes(needs: Needs, config: Config) -> float:
    """Time of a training that has the machine to itself, at half the rate of a large matrix product."""
    rate = matmul_rate(config.model.device, config.model.dtype) / 2 * config.runtime.processes
    return needs.operations / rate / 60


def device_bytes(config: Config) -> int:
    """Memory that one training may use: what is free on the GPU or the machine, over the trainings at once.

    Several processes of one training have a GPU each, and share the machine's memory.

    Raises:
        EngineError: ``model.device`` is a GPU that is not there.
    """
    processes, workers = config.runtime.processes, config.runtime.workers
    if resolve_device(config.model.device) == "cuda":
        return _gpu_bytes()[0] // (workers if processes == 1 else 1)
    return psutil.virtual_memory().available // (workers if processes == 1 else processes)


def _gpu_bytes() -> tuple[int, int]:
    """Free and whole memory of the GPU."""
    if not torch.cuda.is_available():
        raise EngineError("model.device=cuda, but torch sees no GPU; use auto, or a CUDA build of torch")
    return torch.cuda.mem_get_info()


def require_memory(needs: Needs, config: Config) -> None:
    """Refuse a training that cannot fit, before hours are spent on it.

    Raises:
        EngineError: it does not fit; what helps is named in order.
    """
    free = device_bytes(config)
    if needs.bytes <= free:
        return
    helps = [f"lower {', then '.join(needs.knobs)}"] if needs.fixed < free else []
    if not config.model.lora_rank:
        helps.append("tune an adapter (model.lora_rank=32)")
    if needs.fixed > free:
        helps.append("shard it (runtime.processes=8, runtime.accelerate=fsdp2)")
    helps.append("take a smaller model.base")
    raise EngineError(
        f"the tuning of {config.model.base} wants {needs}, and there are {free / GIB:.1f} GiB: "
        f"{', or '.join(helps)}"
    )


def matmul_rate(device: str, dtype: str, size: int = 2048, repeats: int = 4) -> float:
    """Floating-point operations a second of one large matrix product: what the device can do at best."""
    one = torch.ones(size, size, dtype=getattr(torch, dtype), device=resolve_device(device))
    (one @ one).sum().item()
    start = time.perf_counter()
    for _ in range(repeats):
        last = one @ one
    last.sum().item()
    return repeats * 2 * size**3 / (time.perf_counter() - start)
