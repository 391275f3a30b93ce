"""One dial, PROFILE, sets every size; a config is frozen and cross-checked at birth.

The defaults below are the `demo` profile. `PROFILE_TABLE` lists what the other profiles change, and
`load_config` applies, in this order: defaults, profile, overrides.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lore_lib.errors import ConfigError, nearest

Profile = Literal["smoke", "demo", "small", "paper"]
Arm = Literal["direct", "label_first", "naive", "progressive"]
Curriculum = Literal["easy_to_hard", "shuffled"]
Policy = Literal["clip_higher", "symmetric", "on_policy"]
Outcome = Literal["exact", "same_side", "ordinal"]
RolloutEngine = Literal["hf", "vllm", "server"]
Schedule = Literal["linear", "constant"]
Retrieval = Literal["bm25", "dense", "hybrid"]
PROFILES: tuple[str, ...] = get_args(Profile)

# Engines that stand in for a large model, by role; every result they touch carries their name.
MOCKS = {"captioner": {"pixels": "a vision-language model"}, "teacher": {"symbolic": "a large teacher model"}}

# What this version can run; the other choices are the paper's own, and nothing stands in for them silently.
BUILT = {
    "features.captioner": ("pixels", "vlm", "openai"),
    "cot.teacher": ("symbolic", "openai", "hf", "vllm"),
    "sampling.engine": ("hf", "vllm", "openai"),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def _no_secret(url: str) -> str:
    if "@" in url or "?" in url:
        raise ValueError("no password or query in it; the key belongs in OPENAI_API_KEY")
    return url


class ModelConfig(_Frozen):
    """The student: any causal LM that transformers can load."""

    base: str = "data/models/lore-nano"  # folder under the project root, or a hub name
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights in memory
    lora_rank: int = Field(default=0, ge=0)  # 0 = full tuning; else rank of the adapter
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto = the accelerator if there is one


class WorldConfig(_Frozen):
    """Sizes of the generated vertical, and wrong labels in it (ignored for your own data)."""

    train_queries: int = Field(default=900, ge=1)  # queries whose pairs are trained on
    dev_queries: int = Field(default=60, ge=1)  # queries for choosing settings
    test_queries: int = Field(default=100, ge=1)  # queries of the benchmark; disjoint from the others
    pairs_per_query: int = Field(default=4, ge=1)  # items judged per query
    clicked_per_query: int = Field(default=2, ge=0)  # further items that only the click log knows
    label_noise: float = Field(default=0.0, ge=0, le=1)  # share of train pairs labelled one level off


class FeaturesConfig(_Frozen):
    """What of an item reaches the prompt, and the experiment that compares prompts."""

    template: Literal["nano", "en", "zh"] = "nano"  # wording of the prompt; nano is bare, for lore-nano
    budget: Literal["short", "mid", "full"] = "mid"  # the template's token budget of the user's turn
    captioner: Literal["pixels", "vlm", "openai"] = "pixels"  # who looks; pixels is a mock of a VLM
    captioner_model: str = ""  # folder or hub name (vlm), name at the endpoint (openai)
    captioner_url: str = "http://localhost:8000/v1"  # OpenAI-compatible; its key is in OPENAI_API_KEY, if any
    captioner_concurrency: int = Field(default=32, ge=1)  # calls in flight
    captioner_requests_per_minute: float = Field(default=0, ge=0)  # 0 = no limit
    ablation_pairs: int = Field(default=2000, ge=1)  # train pairs, each taught on every rung of the ladder
    ablation_epochs: float = Field(default=1, gt=0)  # passes over them
    ablation_trainings: int = Field(default=2, ge=1)  # models tuned so, each with a seed of its own
    ablation_learning_rate: float = Field(default=2e-3, gt=0)  # peak of the schedule
    ablation_samples: int = Field(default=4, ge=1)  # completions per dev pair, rung and training

    _captioner_url = field_validator("captioner_url")(_no_secret)

    @model_validator(mode="after")
    def _captioner_can_see(self) -> "FeaturesConfig":
        if self.captioner != "pixels" and not self.captioner_model:
            raise ValueError(f"captioner={self.captioner} needs a model; set features.captioner_model")
        return self


class CotConfig(_Frozen):
    """Progressive synthesis of chains of thought, and the training sets made from them."""

    arms: tuple[Arm, ...] = Field(
        default=("direct", "naive", "progressive"), min_length=1
    )  # training sets to make, and so systems to train
    pairs: int = Field(default=2400, ge=1)  # train pairs in each set, before the funnel
    teacher: Literal["symbolic", "openai", "hf", "vllm"] = "symbolic"  # symbolic is a mock of a large model
    teacher_model: str = ""  # name at the endpoint (openai), folder or hub name (hf, vllm)
    teacher_engine: dict[str, Any] = {}  # further arguments of vLLM's engine, such as tensor_parallel_size
    teacher_url: str = "http://localhost:8000/v1"  # OpenAI-compatible; its key is in OPENAI_API_KEY, if any
    teacher_samples: int = Field(default=1, ge=1)  # chains per pair; the majority's label is the teacher's
    teacher_temperature: float = Field(default=0.0, ge=0)  # 0 is greedy
    teacher_max_tokens: int = Field(default=1024, ge=1)  # longer replies are cut and fail
    teacher_concurrency: int = Field(default=32, ge=1)  # calls in flight
    teacher_requests_per_minute: float = Field(default=0, ge=0)  # 0 = no limit
    teacher_tokens_per_minute: float = Field(default=0, ge=0)  # read and written; 0 = no limit
    teacher_timeout_seconds: float = Field(default=120, gt=0)  # of one attempt
    teacher_attempts: int = Field(default=6, ge=1)  # tries per call
    teacher_prompt_price: float = Field(default=0, ge=0)  # per million tokens read
    teacher_completion_price: float = Field(default=0, ge=0)  # per million tokens written
    top_clicked: int = Field(default=5, ge=0)  # shops whose most clicked selling point is read per query
    selling_points: int = Field(default=3, ge=0)  # further shops read where the clicks do not settle a word
    retrieval: Retrieval = "bm25"  # how these are found: by words, by meaning (dense), by both (hybrid)
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"  # folder or hub name, for dense and hybrid
    naive_disagreement: Literal["repair", "drop"] = "repair"  # naive reasoning with another verdict than gold
    max_words: int = Field(default=90, ge=1)  # longest completion the funnel keeps
    ablation_pairs: int = Field(default=400, ge=1)  # train pairs of the experiment that leaves out stages
    ablation_batch_pairs: int = Field(default=2, ge=1)  # per optimiser step: with few pairs, steps are short
    ablation_epochs: float = Field(default=3, gt=0)  # passes over them
    ablation_samples: int = Field(default=8, ge=1)  # completions per dev pair
    ablation_seeds: tuple[int, ...] = Field(default=(0,), min_length=1)  # one training per arm and seed
    on_policy_samples: int = Field(default=4, ge=1)  # chains the student writes per train pair

    _teacher_url = field_validator("teacher_url")(_no_secret)

    @field_validator("teacher_engine")
    @classmethod
    def _engine_runs_no_code(cls, engine: dict[str, Any]) -> dict[str, Any]:
        if refused := sorted({"model", "trust_remote_code"} & set(engine)):
            raise ValueError(
                f"{refused[0]} is not set here: the model is cot.teacher_model, and its code is never run"
            )
        return engine

    @model_validator(mode="after")
    def _teacher_can_teach(self) -> "CotConfig":
        if self.teacher != "symbolic" and not self.teacher_model:
            raise ValueError(f"teacher={self.teacher} needs a model; set cot.teacher_model")
        if self.teacher_samples > 1 and self.teacher_temperature == 0:
            raise ValueError(
                f"teacher_samples={self.teacher_samples} at temperature 0 are all the same; "
                "use teacher_samples=1, or teacher_temperature=0.7"
            )
        return self


class SftConfig(_Frozen):
    """Supervised tuning on labels or on accepted chains."""

    epochs: float = Field(default=3, gt=0)  # passes over the training set
    learning_rate: float = Field(default=2e-3, gt=0)  # peak of the schedule
    batch_pairs: int = Field(default=16, ge=1)  # pairs per optimiser step
    pairs_at_once: int = Field(default=0, ge=0)  # most pairs a device holds at once; 0 = no bound
    max_sequence_tokens: int = Field(default=256, ge=16)  # prompt and completion together
    warmup_share: float = Field(default=0.05, ge=0, lt=1)  # share of steps spent warming up
    checkpoint_steps: int = Field(default=50, ge=1)  # optimiser steps between resumable checkpoints


class SamplingConfig(_Frozen):
    """Completions drawn to measure pass@k."""

    engine: Literal["hf", "vllm", "openai"] = "hf"  # who generates: in process, offline vLLM, or a server
    url: str = "http://localhost:8000/v1"  # of the server (openai); its key is in OPENAI_API_KEY, if any
    tensor_parallel: int = Field(default=1, ge=1)  # GPUs that one model is spread over (vllm)
    n: int = Field(default=8, ge=1)  # completions per pair
    k: int = Field(default=8, ge=1)  # k of pass@k, at most n
    temperature: float = Field(default=1.0, gt=0)  # softmax temperature
    max_completion_tokens: int = Field(default=168, ge=1)  # longer ones are cut and counted
    batch_completions: int = Field(default=256, ge=1)  # decoded at once (hf), or calls in flight (openai)
    pool_pairs: int = Field(default=1200, ge=1)  # train pairs sampled too, for the hard pool and the student
    pool_n: int = Field(default=16, ge=1)  # completions for each of them: more, to tell hard from unsolved
    bootstrap: int = Field(default=1000, ge=1)  # resamples behind each interval

    _url = field_validator("url")(_no_secret)

    @model_validator(mode="after")
    def _k_within_n(self) -> "SamplingConfig":
        if self.k > self.n:
            raise ValueError(
                f"k={self.k} is more than n={self.n} completions per pair; use k<={self.n} or n={self.k}"
            )
        if self.k > self.pool_n:
            raise ValueError(f"k={self.k} is more than pool_n={self.pool_n}; use pool_n={self.k} or more")
        return self


class GrpoConfig(_Frozen):
    """KL-free GRPO with clip-higher over a pool of hard pairs."""

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)  # one training run each
    policies: tuple[Policy, ...] = Field(default=("clip_higher",), min_length=1)  # to compare; first = recipe
    curricula: tuple[Curriculum, ...] = Field(default=("easy_to_hard",), min_length=1)  # likewise
    prompts_per_rollout: int = Field(default=16, ge=1)  # pairs sampled between two policy snapshots
    completions_per_prompt: int = Field(default=8, ge=2)  # size of a group
    updates_per_rollout: int = Field(default=4, ge=1)  # optimiser steps on each rollout; on_policy makes 1
    micro_batch_completions: int = Field(default=64, ge=1)  # in memory at once; never changes the sum
    rollouts: int = Field(default=24, ge=1)  # length of training
    engine: RolloutEngine = "hf"  # who draws: the model itself, vLLM beside it, or a server
    engine_memory: float = Field(default=0.3, gt=0, lt=1)  # share of a GPU's memory for vLLM beside it (vllm)
    url: str = "http://localhost:8000/v1"  # of a `vllm serve` that takes weights (server)
    max_refills: int = Field(default=2, ge=0)  # further draws to replace groups without signal
    window_share: float = Field(default=0.5, gt=0, le=1)  # of the ordered pool, from which a rollout draws
    learning_rate: float = Field(default=3e-4, gt=0)  # at its peak, after the first rollout
    schedule: Schedule = "linear"  # the rate falls to 0 at the last rollout, or stays as it is
    epsilon: float = Field(default=0.2, gt=0, lt=1)  # lower clip: ratio >= 1 - epsilon
    epsilon_high: float = Field(default=0.28, gt=0)  # upper clip: ratio <= 1 + epsilon_high
    outcome: Outcome = "same_side"  # what a wrong label is worth
    outcome_start: float = Field(default=0.5, gt=0, le=1)  # weight of the outcome at first; it grows to 1
    format_reward: float = Field(default=0.1, ge=0)  # added when the completion parses
    overlong_penalty: float = Field(default=0.1, ge=0)  # taken from a completion at the token limit
    easy_share: float = Field(default=0.2, ge=0, lt=1)  # share of the pool that is solved already
    probe_every_rollouts: int = Field(default=6, ge=1)  # rollouts between two looks at the dev pairs
    probe_pairs: int = Field(default=240, ge=1)  # dev pairs of a look; the best look's weights are kept
    probe_completions: int = Field(default=8, ge=1)  # completions per dev pair of a look, for its pass@k
    patience_looks: int = Field(default=4, ge=1)  # looks without a new best after which training stops

    _url = field_validator("url")(_no_secret)

    @model_validator(mode="after")
    def _batches_fit(self) -> "GrpoConfig":
        prompts, group = self.prompts_per_rollout, self.completions_per_prompt
        updates, total = self.updates_per_rollout, prompts * group
        if updates < 2 and set(self.policies) != {"on_policy"}:
            raise ValueError(
                f"updates_per_rollout={updates}: with one update per rollout the ratio is 1 and both clips "
                "are idle, so epsilon and epsilon_high do nothing; use 2 or more, or declare the clips off "
                "with policies=[on_policy]"
            )
        if total % updates:
            fits = [size for size in range(2, total + 1) if total % size == 0]
            below = [size for size in fits if size < updates][-1:]
            above = [size for size in fits if size > updates][:1]
            raise ValueError(
                f"prompts_per_rollout={prompts} x completions_per_prompt={group} = {total} is not a multiple "
                f"of updates_per_rollout={updates}; use {' or '.join(map(str, below + above))}"
            )
        if self.epsilon_high < self.epsilon:
            raise ValueError(
                f"epsilon_high={self.epsilon_high} is below epsilon={self.epsilon}; clip-higher wants it at "
                f"least as large: use epsilon_high={self.epsilon} or more"
            )
        return self


class RairConfig(_Frozen):
    """The benchmark: general, long-tail hard, visual salience."""

    bootstrap: int = Field(default=1000, ge=1)  # resamples behind each interval
    greedy: bool = True  # judge with one greedy completion (else one sample)
    limit: int = Field(default=0, ge=0)  # pairs of each subset that are judged; 0 = all
    encoder: str = ""  # of the cosine judge: folder or hub name; "bundled" is the extra's; "" leaves it out
    judge_model: str = ""  # a further judge, by its name at the endpoint below; "" for none
    judge_url: str = "http://localhost:8000/v1"  # OpenAI-compatible; its key is in OPENAI_API_KEY, if any
    intents: Literal["told", "rules", "openai"] = "told"  # of your queries: their table, your words, a model
    intents_model: str = ""  # name at the endpoint (openai)
    intents_url: str = "http://localhost:8000/v1"  # OpenAI-compatible; its key is in OPENAI_API_KEY, if any
    pixel_seeds: tuple[int, ...] = (0, 1)  # of trainings that read pixels, not captions; () = none
    pixel_pairs: int = Field(default=800, ge=1)  # train pairs of each, and of their rivals, read once
    pixel_learning_rate: float = Field(default=1e-3, gt=0)  # peak of the schedule

    _judge_url = field_validator("judge_url", "intents_url")(_no_secret)

    @model_validator(mode="after")
    def _intents_can_be_asked(self) -> "RairConfig":
        if self.intents == "openai" and not self.intents_model:
            raise ValueError("intents=openai needs the model's name at the endpoint; set rair.intents_model")
        return self


class ServingConfig(_Frozen):
    """Simulated traffic over cache, student and LLM."""

    # the traffic
    requests: int = Field(default=400_000, ge=1)  # query-item requests of one simulation
    queries: int = Field(default=20_000, ge=1)  # distinct queries, each a double of a judged one
    days: float = Field(default=4.0, gt=0)  # that they fill; one more day of requests before warms up
    zipf_exponent: float | None = Field(default=None, gt=0)  # of query popularity; None: fitted to the log
    zipf_shift: float = Field(default=0.0, gt=-1)  # flattens the head; read where the exponent is given
    daily_swing: float = Field(
        default=0.5, ge=0, lt=1
    )  # rate at noon 1 + swing of the mean, at night 1 - swing
    bursts_per_day: float = Field(default=1.0, ge=0)  # sudden rushes for one query
    burst_factor: float = Field(default=3.0, ge=1)  # of the whole rate, while one lasts
    burst_minutes: float = Field(default=10.0, gt=0)  # of a day of 1,440
    drift_per_day: float = Field(default=0.05, ge=0)  # share of the queries that swap popularity a day
    changed_per_day: float = Field(default=0.05, ge=0)  # share of the pairs whose item changes a day
    replaced_per_day: float = Field(default=0.02, ge=0)  # share of the pairs that get a new item
    # strata and cache, decided again at every refill from past counts alone
    refills_per_day: float = Field(default=4.0, gt=0)  # how often
    memory_days: float = Field(default=1.0, gt=0)  # half-life of a count
    sketch_width: int = Field(default=0, ge=0)  # counters per row of a count-min sketch; 0 counts exactly
    frequency_noise: float = Field(default=0.0, ge=0)  # log-normal error (sigma) of every estimate
    head_share: float = Field(default=0.02, ge=0, le=1)  # share of distinct queries served from the cache
    torso_share: float = Field(default=0.18, ge=0, le=1)  # share of distinct queries served by the student
    cache_pairs: int = Field(default=2000, ge=0)  # scores that fit
    admit_count: float = Field(default=2.0, ge=0)  # a pair asked less than this is not scored offline
    ttl_days: float = Field(default=1.0, gt=0)  # a score older than this is not served
    invalidate: bool = True  # drop the score of an item that changed
    # the LLM for the tail
    llm_workers: int = Field(default=3, ge=1)  # LLM servers
    llm_batch: int = Field(default=4, ge=1)  # requests that one serves at once
    llm_batch_cost: float = Field(default=0.5, ge=0, le=1)  # of each further member, in lone service times
    llm_utilisation: float = Field(default=0.7, gt=0)  # by the tail, one at a time; sets the arrival rate
    llm_queue_limit: int = Field(default=64, ge=1)  # waiting requests beyond which the student answers
    llm_timeout_s: float = Field(default=5.0, gt=0)  # after so long a wait the student answers
    llm_slowdown: float = Field(default=1.0, gt=0)  # factor on its measured times
    llm_outages: tuple[tuple[float, float], ...] = ()  # (from, to) days after the warm-up in which it is down
    escalate_below: float = Field(default=0.6, ge=0, le=1)  # policy "confidence": the LLM answers below this
    random_llm_share: float = Field(default=0.3, ge=0, le=1)  # policy "random": of the requests
    # the bill
    gpu_price: float = Field(default=2.5, ge=0)  # money per worker and hour, online or offline
    cpu_price: float = Field(default=0.05, ge=0)  # money per student core and hour
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2, 3, 4), min_length=1
    )  # of sweeps; intervals are over these
    slo_ms: float = Field(default=1000.0, gt=0)  # latency promised at p95
    # the student
    student_base: str = "data/models/lore-nano"  # folder under the project root, or a hub name
    student_epochs: int = Field(default=3, ge=1)  # passes over the sampled train pairs
    student_learning_rate: float = Field(default=1e-3, gt=0)  # peak of the schedule
    student_batch_pairs: int = Field(default=16, ge=1)  # pairs per optimiser step
    check_seconds: float = Field(default=15.0, gt=0)  # of traffic asked of the real service as well

    @field_validator("llm_outages")
    @classmethod
    def _outages_rise(cls, outages: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        moments = [moment for outage in outages for moment in outage]
        if moments != sorted(moments) or min(moments, default=0) < 0:
            raise ValueError("give (from, to) pairs of days that rise from 0 on, such as [[0.5, 0.6]]")
        return outages

    @model_validator(mode="after")
    def _shares_leave_a_tail(self) -> "ServingConfig":
        if self.head_share + self.torso_share > 1:
            raise ValueError(
                f"head_share={self.head_share} + torso_share={self.torso_share} is more than 1; "
                f"use torso_share<={round(1 - self.head_share, 6)}"
            )
        return self


class ServiceConfig(_Frozen):
    """The HTTP service of `lore serve`: its judges, its store of scores, and what it refuses."""

    store: str = ""  # sqlite:///path, redis:// or valkey://host:port/0; "" = SQLite in the run's folder
    score_ttl_hours: float = Field(default=168, gt=0)  # an older score is not served
    window_requests: int = Field(default=1_000_000, ge=1)  # requests after which the strata are named anew
    llm: Literal["local", "openai", "none"] = "local"  # local = the run's own model, in a process beside
    llm_model: str = ""  # name at the endpoint (openai)
    llm_url: str = "http://localhost:8000/v1"  # OpenAI-compatible; its key is in OPENAI_API_KEY, if any
    llm_timeout_ms: float = Field(default=2000, gt=0)  # then the student answers
    llm_batch: int = Field(default=8, ge=1)  # requests read by the LLM at once
    llm_workers: int = Field(default=1, ge=1)  # such batches at once
    llm_queue_limit: int = Field(default=64, ge=1)  # waiting requests beyond which the student answers
    student_batch: int = Field(default=16, ge=1)  # requests read by the student at once
    student_queue_limit: int = Field(default=1024, ge=1)  # waiting requests beyond which the service says 503
    student_threads: int = Field(default=1, ge=1)  # of one batch
    in_flight: int = Field(default=512, ge=1)  # HTTP requests at work beyond which the service says 503
    body_kib: int = Field(default=64, ge=1)  # a larger body is refused: 413
    batch_pairs: int = Field(default=64, ge=1)  # pairs in a batch request; more are refused: 422
    query_characters: int = Field(default=512, ge=1)  # a longer query is refused: 422
    deadline_ms: float = Field(default=5000, gt=0)  # of an HTTP request; beyond it the service says 503

    _llm_url = field_validator("llm_url")(_no_secret)

    @model_validator(mode="after")
    def _deadline_leaves_time(self) -> "ServiceConfig":
        if self.llm_timeout_ms >= self.deadline_ms:
            raise ValueError(
                f"llm_timeout_ms={self.llm_timeout_ms:g} leaves the student no time before "
                f"deadline_ms={self.deadline_ms:g}; use llm_timeout_ms<={self.deadline_ms / 2:g}"
            )
        if self.llm == "openai" and not self.llm_model:
            raise ValueError("llm=openai needs the model's name at the endpoint; set service.llm_model")
        return self


class RuntimeConfig(_Frozen):
    """How the work is done; never changes a result."""

    workers: int = Field(default=3, ge=1)  # independent trainings at once, one thread each
    processes: int = Field(default=1, ge=1)  # that train one model together; above 1, by accelerate launch
    accelerate: str = "ddp"  # how they do: configs/accelerate/<name>.yaml
    stage_timeout_minutes: float = Field(default=60.0, gt=0)  # a notebook that takes longer is stopped
    engine: Literal["local", "ray"] = "local"  # of batch synthesis: this process, or Ray Data over workers


class Config(_Frozen):
    """Everything a run depends on."""

    profile: Profile = "demo"
    vertical: str = "apparel_home"  # folder under data/verticals, or of your own
    run: str = "demo"  # folder under outputs/
    seed: int = Field(default=17, ge=0)  # every random stream derives from it
    model: ModelConfig = ModelConfig()
    world: WorldConfig = WorldConfig()
    features: FeaturesConfig = FeaturesConfig()
    cot: CotConfig = CotConfig()
    sft: SftConfig = SftConfig()
    sampling: SamplingConfig = SamplingConfig()
    grpo: GrpoConfig = GrpoConfig()
    rair: RairConfig = RairConfig()
    serving: ServingConfig = ServingConfig()
    service: ServiceConfig = ServiceConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _one_engine_on_a_gpu(self) -> "Config":
        for name in ("sampling", "grpo"):
            if getattr(self, name).engine == "vllm" and self.runtime.workers > 1:
                raise ValueError(
                    f"{name}.engine=vllm takes a GPU's memory for itself, and runtime.workers="
                    f"{self.runtime.workers} would start as many engines; use runtime.workers=1"
                )
        return self

    @model_validator(mode="after")
    def _paper_refuses_mocks(self) -> "Config":
        if self.profile == "paper":
            if self.features.captioner in MOCKS["captioner"]:
                raise ValueError(
                    "features.captioner=pixels is a mock; profile paper wants a real VLM: use vlm"
                )
            if self.cot.teacher in MOCKS["teacher"]:
                raise ValueError(
                    "cot.teacher=symbolic is a mock; profile paper wants a real teacher: use openai"
                )
        return self

    def section(self, name: str) -> dict[str, Any]:
        """One section as plain JSON values."""
        return dict(getattr(self, name).model_dump(mode="json"))


SECTIONS: tuple[str, ...] = tuple(
    name for name, field in Config.model_fields.items() if isinstance(field.default, _Frozen)
)

# What the other profiles change. None: as in demo, the default above.
PROFILE_TABLE: dict[str, tuple[Any, Any, Any]] = {
    # setting                     smoke  small                                  paper
    "model.base": (None, "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    "model.dtype": (None, None, "bfloat16"),
    "model.lora_rank": (None, 16, 32),
    "world.train_queries": (120, None, 20_000),
    "world.dev_queries": (12, None, 500),
    "world.test_queries": (16, None, 2000),
    "world.pairs_per_query": (3, None, 8),
    "features.template": (None, "en", "en"),
    "features.captioner": (None, None, "vlm"),
    "features.captioner_model": (None, None, "Qwen/Qwen2.5-VL-7B-Instruct"),
    "features.ablation_pairs": (16, None, None),
    "features.ablation_trainings": (1, 1, 1),
    "features.ablation_learning_rate": (None, 2e-4, 1e-4),
    "features.ablation_samples": (2, None, None),
    "cot.pairs": (320, None, 100_000),
    "cot.teacher": (None, None, "openai"),
    "cot.teacher_model": (None, None, "Qwen/Qwen2.5-72B-Instruct"),
    "cot.max_words": (None, None, 300),
    "cot.ablation_pairs": (48, None, 20_000),
    "cot.ablation_batch_pairs": (None, 16, 64),
    "cot.ablation_epochs": (1, 2, 2),
    "cot.ablation_samples": (2, None, None),
    "cot.on_policy_samples": (2, None, None),
    "sft.epochs": (4, 2, 2),
    "sft.learning_rate": (None, 2e-4, 1e-4),
    "sft.batch_pairs": (None, 32, 128),
    "sft.pairs_at_once": (None, 8, 4),
    "sft.max_sequence_tokens": (None, 1152, 4096),
    "sft.checkpoint_steps": (20, None, 100),
    "sampling.engine": (None, None, "vllm"),
    "sampling.max_completion_tokens": (None, 256, 1024),
    "sampling.batch_completions": (None, 64, 64),
    "sampling.pool_pairs": (40, None, 20_000),
    "sampling.pool_n": (8, None, None),
    "sampling.bootstrap": (200, None, None),
    "grpo.seeds": ((0,), None, None),
    "grpo.policies": (("clip_higher", "on_policy"), None, None),
    "grpo.prompts_per_rollout": (4, None, 128),
    "grpo.completions_per_prompt": (4, None, 16),
    "grpo.updates_per_rollout": (2, None, None),
    "grpo.micro_batch_completions": (None, 16, 8),
    "grpo.rollouts": (2, 12, 200),
    "grpo.engine": (None, None, "vllm"),
    "grpo.learning_rate": (None, 2e-5, 1e-5),
    "grpo.schedule": (None, None, "constant"),
    "grpo.probe_every_rollouts": (1, 4, 20),
    "grpo.probe_pairs": (12, 120, None),
    "grpo.probe_completions": (4, None, None),
    "rair.bootstrap": (200, None, None),
    "rair.limit": (12, None, None),
    "rair.pixel_seeds": ((0,), None, ()),
    "rair.pixel_pairs": (32, None, None),
    "rair.pixel_learning_rate": (None, 1e-4, None),
    "serving.requests": (20_000, None, 10_000_000),
    "serving.seeds": ((0, 1), None, None),
    "serving.queries": (2000, None, 1_000_000),
    "serving.cache_pairs": (200, None, 100_000),
    "serving.student_base": (None, None, "Qwen/Qwen2.5-0.5B"),
    "serving.student_epochs": (1, None, None),
    "serving.student_learning_rate": (None, 1e-4, 5e-5),
    "serving.student_batch_pairs": (None, 32, 64),
    "serving.check_seconds": (2, 60, 300),
    "runtime.workers": (None, 1, 1),
    "runtime.stage_timeout_minutes": (10.0, 720.0, 2880.0),
}
_COLUMN = {"smoke": 0, "small": 1, "paper": 2}


def setting_names() -> list[str]:
    """Every key that an override may name, such as "grpo.learning_rate"."""
    return [
        f"{section}.{field}"
        for section in SECTIONS
        for field in type(Config.model_fields[section].default).model_fields
    ]


def parse_setting(text: str) -> tuple[str, Any]:
    """Split "key=value" of a command line; the value is read as YAML.

    >>> parse_setting("grpo.seeds=[0, 1]")
    ('grpo.seeds', [0, 1])
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"{text!r} is not a setting; write key=value, such as grpo.learning_rate=1e-5")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {key.strip()!r} is not YAML: {value!r}; quote it") from error


def load_config(
    profile: str = "demo",
    vertical: str = "apparel_home",
    run: str = "",
    seed: int = 17,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Resolve a profile and overrides into one frozen, checked config.

    Args:
        profile: smoke, demo, small or paper.
        vertical: folder name of the vertical.
        run: folder name under outputs; "" means the profile's name.
        seed: root of every random stream.
        overrides: dotted keys to values, such as {"grpo.learning_rate": 1e-5}.

    Raises:
        ConfigError: an unknown profile or key, a value of the wrong type, or settings that contradict.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}; {nearest(profile, PROFILES)}")
    run = run or profile
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run):
        raise ConfigError(
            f"run {run[:120]!r} is not a folder name; use letters, digits, dot, dash, underscore, at most 100"
        )
    values: dict[str, Any] = {}
    if profile in _COLUMN:
        row = {key: columns[_COLUMN[profile]] for key, columns in PROFILE_TABLE.items()}
        values = {key: value for key, value in row.items() if value is not None}
    known = setting_names()
    for key, value in (overrides or {}).items():
        if key not in known:
            raise ConfigError(f"unknown setting {key!r}; {_hint(key, known)}")
        values[key] = value
    tree: dict[str, Any] = {"profile": profile, "vertical": vertical, "run": run, "seed": seed}
    for key, value in values.items():
        section, _, field = key.partition(".")
        tree.setdefault(section, {})[field] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item) for item in error.errors())) from error


def require_built(config: Config) -> None:
    """Refuse a config that names an engine, teacher or captioner which this version does not have.

    Raises:
        ConfigError: names every such setting and what there is.
    """
    missing = [
        f"{key}={value} (there is: {', '.join(built)})"
        for key, built in BUILT.items()
        if (value := config.section(key.partition(".")[0])[key.partition(".")[2]]) not in built
    ]
    if missing:
        raise ConfigError(
            f"profile {config.profile} asks for what this version does not have yet: {'; '.join(missing)}. "
            "Profiles smoke, demo and small run; for another student use profile small with "
            "--set model.base=<folder or hub name>"
        )


def config_hash(config: Config, sections: tuple[str, ...] = SECTIONS) -> str:
    """Sha256 of what decides a result: profile, vertical, seed and the named sections, but not `runtime`."""
    decides: dict[str, Any] = {name: config.section(name) for name in sections if name != "runtime"}
    decides |= {"profile": config.profile, "vertical": config.vertical, "seed": config.seed}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _hint(key: str, known: list[str]) -> str:
    if key in ("profile", "vertical", "run", "seed"):
        return f"it is not an override: pass --{key}, or {key.upper()} in a notebook"
    section, _, field = key.partition(".")
    if section in SECTIONS:
        fields = [name.partition(".")[2] for name in known if name.startswith(section + ".")]
        return f"section {section}: {nearest(field, fields)}"
    if section == key:  # a bare field name: say where it lives
        homes = [name for name in known if name.partition(".")[2] == key]
        if homes:
            return f"did you mean '{homes[0]}'?" if len(homes) == 1 else f"say which: {', '.join(homes)}"
    hint = nearest(key, known)
    return hint if hint.startswith("did") else f"sections: {', '.join(SECTIONS)}"


def _explain(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place}={item['input']!r:.200}: {message}"
