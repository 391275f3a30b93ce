from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from lore_lib.config import (
    PROFILE_TABLE,
    PROFILES,
    SECTIONS,
    FeaturesConfig,
    config_hash,
    load_config,
    parse_setting,
    setting_names,
)
from lore_lib.errors import ConfigError
from lore_lib.features.template import load_template


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_loads_and_takes_its_name_as_run(profile: str) -> None:
    config = load_config(profile)
    assert (config.profile, config.run, config.seed) == (profile, profile, 17)


def test_the_profile_table_names_only_real_settings() -> None:
    assert set(PROFILE_TABLE) <= set(setting_names())


def test_the_table_reaches_the_config() -> None:
    assert load_config("smoke").world.train_queries == PROFILE_TABLE["world.train_queries"][0]
    assert load_config("small").model.base == PROFILE_TABLE["model.base"][1]
    assert load_config("paper").model.lora_rank == PROFILE_TABLE["model.lora_rank"][2]
    assert load_config("demo").world.train_queries == 900


@pytest.mark.parametrize("profile", PROFILES)
def test_lore_nano_reads_bare_prompts_and_larger_models_instructions(profile: str) -> None:
    features, model = load_config(profile).features, load_config(profile).model
    assert features.template == ("nano" if "lore-nano" in model.base else "en")
    assert features.budget == "mid", "the paper's choice"


@pytest.mark.parametrize("profile", ["small", "paper"])
def test_a_row_holds_the_longest_prompt_and_the_longest_completion(profile: str) -> None:
    config = load_config(profile)
    prompt = load_template(config.features.template).budgets[config.features.budget].tokens
    chat = 40  # SmolLM2's template, system turn included, adds 30
    assert prompt + chat + config.sampling.max_completion_tokens <= config.sft.max_sequence_tokens


def test_every_bundled_template_can_be_chosen(root: Path) -> None:
    bundled = {path.stem for path in (root / "lore_lib/features/templates").glob("*.yaml")}
    assert set(get_args(FeaturesConfig.model_fields["template"].annotation)) == bundled


def test_overrides_win_over_the_profile() -> None:
    config = load_config("smoke", overrides={"world.train_queries": 7, "grpo.seeds": [4, 5]})
    assert config.world.train_queries == 7
    assert config.grpo.seeds == (4, 5)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load_config().sft.epochs = 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"grpo.learning_rat": 1}, "did you mean 'learning_rate'?"),
        ({"gppo.seeds": [1]}, "did you mean 'grpo.seeds'?"),
        ({"pool_pairs": 3}, "did you mean 'sampling.pool_pairs'?"),
        ({"learning_rate": 3}, "say which: sft.learning_rate, grpo.learning_rate"),
        ({"qqq": 3}, "sections: model, world"),
        ({"seed": 3}, "pass --seed"),
        ({"grpo.learning_rate": "fast"}, "grpo.learning_rate='fast'"),
        ({"grpo.learning_rate": float("nan")}, "grpo.learning_rate=nan"),
        ({"features.budget": "midd"}, "'short', 'mid' or 'full'"),
        ({"features.template": "english"}, "'nano', 'en' or 'zh'"),
        ({"grpo.updates_per_rollout": 1}, "use 2 or more"),
        ({"grpo.epsilon_high": 0.1}, "use epsilon_high=0.2 or more"),
        ({"sampling.k": 9}, "use k<=8 or n=9"),
        ({"serving.head_share": 0.9}, "use torso_share<=0.1"),
        ({"cot.arms": []}, "cot.arms"),
        ({"sft.epochs": 0}, "greater than 0"),
        (
            {"grpo.prompts_per_rollout": 3, "grpo.updates_per_rollout": 5},
            "prompts_per_rollout=3 x completions_per_prompt=8 = 24 is not a multiple of "
            "updates_per_rollout=5; use 4 or 6",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(overrides: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo", overrides=overrides)
    assert says in str(caught.value)


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"sft\.epochs.*rair\.bootstrap"):
        load_config(overrides={"sft.epochs": "x", "rair.bootstrap": 0})


@pytest.mark.parametrize("override", [{"cot.teacher": "symbolic"}, {"features.captioner": "pixels"}])
def test_paper_refuses_mocks(override: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="is a mock"):
        load_config("paper", overrides=override)


def test_unknown_profile_and_bad_run_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        load_config("smok")
    for run in ("../up", "a/b", ".hidden", "a b"):
        with pytest.raises(ConfigError, match="not a folder name"):
            load_config(run=run)


def test_settings_of_the_command_line_are_yaml() -> None:
    assert parse_setting("grpo.seeds=[0,1]") == ("grpo.seeds", [0, 1])
    assert parse_setting("rair.greedy=false") == ("rair.greedy", False)
    assert load_config(overrides=dict([parse_setting("grpo.learning_rate=5e-6")])).grpo.learning_rate == 5e-6
    for text in ("grpo.seeds", "=3"):
        with pytest.raises(ConfigError, match="key=value"):
            parse_setting(text)
    with pytest.raises(ConfigError, match="not YAML"):
        parse_setting("a.b=[")


def test_the_hash_sees_what_decides_a_result_and_nothing_else() -> None:
    base = config_hash(load_config())
    assert config_hash(load_config(run="other")) == base
    assert config_hash(load_config(overrides={"runtime.workers": 1})) == base
    assert config_hash(load_config(seed=18)) != base
    assert config_hash(load_config(overrides={"sft.epochs": 7})) != base
    assert config_hash(load_config(overrides={"sft.epochs": 7}), ("world",)) == config_hash(
        load_config(), ("world",)
    )
    assert "runtime" in SECTIONS


def test_engines_that_take_a_whole_gpu_do_not_start_side_by_side() -> None:
    told = r"runtime\.workers=3 would start as many engines; use runtime\.workers=1"
    with pytest.raises(ConfigError, match=told):
        load_config("demo", overrides={"sampling.engine": "vllm"})
    both = {"sampling.engine": "vllm", "runtime.workers": 1}
    assert load_config("demo", overrides=both).sampling.engine == "vllm"
    assert load_config("demo", overrides={"sampling.engine": "openai"}).runtime.workers == 3


def test_fewer_tries_than_k_for_the_pool_are_refused() -> None:
    with pytest.raises(ConfigError, match="k=8 is more than pool_n=4; use pool_n=8 or more"):
        load_config("demo", overrides={"sampling.pool_n": 4})
