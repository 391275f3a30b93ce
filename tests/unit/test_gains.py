"""Gains of ways of training on made scores whose answers are known."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest

from lore_lib.config import Curriculum, GrpoConfig, Policy
from lore_lib.sampling.intervals import cluster_bootstrap, crossed_bootstrap
from lore_lib.training.gains import against_the_paper, look_gains, run_gains, verdicts, way_gains
from lore_lib.training.grpo_job import system_names, variants

PAIRS = 60


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def scores(one: float, many: float = 0.9) -> pd.DataFrame:
    """Per-pair scores; every third pair half a point above the others."""
    uneven = 0.05 * (np.arange(PAIRS) % 3 == 0)
    queries = [f"q{i // 2}" for i in range(PAIRS)]
    return pd.DataFrame(
        {"query_id": queries, "pass_at_1": one + uneven, "pass_at_k": many, "vote_correct": uneven > 0}
    ).assign(mean_tokens=40.0)


def test_names_follow_the_jobs() -> None:
    config = GrpoConfig(seeds=(0, 5), policies=get_args(Policy), curricula=get_args(Curriculum))
    names = system_names(config)
    assert len(names) == len(set(names)) == 2 * len(variants(config))
    assert names[:3] == ["grpo seed 0", "grpo seed 5", "symmetric, easy_to_hard seed 0"]


def test_ways_and_what_is_between_them_by_hand(rng: np.random.Generator) -> None:
    config = GrpoConfig(
        seeds=(0, 1), policies=("clip_higher", "on_policy"), curricula=("easy_to_hard", "shuffled")
    )
    worth = {"clip_higher": 0.10, "on_policy": 0.06, "easy_to_hard": 0.0, "shuffled": 0.02}
    scored = {
        f"{name} seed {seed}": scores(0.5 + worth[way.policy] + worth[way.curriculum] + luck)
        for way, name in zip(variants(config), ["grpo", *(w.name for w in variants(config)[1:])], strict=True)
        for seed, luck in ((0, -0.01), (1, 0.01))
    }
    table = way_gains(scored, scores(0.5, 0.95), config, 8, 200, rng)
    first = table[table.metric == "pass@1 gain"].set_index("difference")
    assert first.value.to_dict() == pytest.approx(
        {
            "clip_higher, easy_to_hard": 0.10,
            "on_policy, easy_to_hard": 0.06,
            "clip_higher, shuffled": 0.12,
            "on_policy, shuffled": 0.08,
            "clip_higher - on_policy": 0.04,
            "easy_to_hard - shuffled": -0.02,
        }
    )
    assert first.lowest["clip_higher, shuffled"] == pytest.approx(0.11)
    assert first.highest["clip_higher, shuffled"] == pytest.approx(0.13)
    assert first.low["clip_higher, shuffled"] < 0.12 < first.high["clip_higher, shuffled"]
    assert table[table.metric == "pass@8 gain"].value[:4].tolist() == pytest.approx([-0.05] * 4)
    assert set(table.seeds) == {2}
    assert set(table.n) == {PAIRS}


def test_a_recipe_alone_has_one_row_per_metric(rng: np.random.Generator) -> None:
    config = GrpoConfig(seeds=(4,))
    scored, start = {"grpo seed 4": scores(0.6)}, scores(0.5)
    table = way_gains(scored, start, config, 8, 50, rng)
    assert table.difference.tolist() == ["clip_higher, easy_to_hard"] * 4
    runs = run_gains(scored, start, ["grpo seed 4"], 8, 50, rng)
    assert runs.metric.tolist() == table.metric.tolist()
    assert runs.value.tolist() == pytest.approx(table.value.tolist())


def test_an_interval_over_trainings_too_is_as_wide_as_both_sources(rng: np.random.Generator) -> None:
    queries = np.repeat(np.arange(200), 2).astype(str)
    rows = rng.normal(0, 0.3, 400)
    trainings = rows + np.array([-0.1, 0.0, 0.1])[:, None]
    mean, low, high = crossed_bootstrap(trainings, queries, 2000, rng)
    alone = cluster_bootstrap(rows, queries, 2000, rng)
    assert mean == pytest.approx(rows.mean())
    assert alone[1] - alone[0] < high - low
    # of three trainings at -.1, 0, .1 the mean has a deviation of .1 / sqrt(3)
    wide = 2 * 1.96 * np.hypot(0.1 / 3**0.5, rows.std() / 400**0.5)
    assert high - low == pytest.approx(wide, rel=0.12)
    equal = crossed_bootstrap(np.tile(rows, (3, 1)), queries, 2000, rng)
    assert equal[2] - equal[1] == pytest.approx(alone[1] - alone[0], rel=0.1)


def test_a_move_is_one_when_its_interval_leaves_out_zero() -> None:
    gains = pd.DataFrame(
        {"metric": ["pass@1 gain"] * 2 + ["pass@8 gain"] * 2, "low": [0.01, -0.01, -0.05, 0.0], "high": 0.03}
    )
    gains.loc[2, "high"] = -0.01
    table = verdicts(gains)
    assert table.loc["pass@1 gain"].tolist() == [1, 0, 1]
    assert table.loc["pass@8 gain"].tolist() == [0, 1, 1]


def test_what_is_said_of_the_paper_counts_runs_and_names_the_lowest_bound() -> None:
    gains = pd.DataFrame(
        {
            "metric": ["pass@1 gain"] * 2 + ["pass@4 gain"] * 2,
            "low": [0.01, -0.01, -0.05, -0.02],
            "high": 0.03,
        }
    )
    said = against_the_paper(gains, 4)
    assert "Of 2 runs here pass@1 is shown to rise in 1; pass@4 is not shown to fall" in said
    assert "(lowest bound -0.050)" in said
    gains.loc[2, "high"] = -0.01
    assert "pass@4 is shown to fall in 1 (lowest bound -0.050)" in against_the_paper(gains, 4)


def test_looks_are_compared_by_seed_with_students_interval() -> None:
    config = GrpoConfig(seeds=(0, 1, 2), policies=("clip_higher", "symmetric"))
    gained = {"clip_higher": (0.01, 0.02, 0.06), "symmetric": (0.03, 0.02, 0.04)}
    probes = pd.DataFrame(
        {"variant": f"{policy}, easy_to_hard", "seed": seed, "rollout": rollout, "mean_tokens": 40.0,
         "pass_at_1": 0.7 + share * by, "pass_at_k": 0.9 - share * by, "pairs": 9, "n": 8, "examples": ["x"]}
        for policy, gains in gained.items()
        for seed, by in enumerate(gains)
        for rollout, share in ((6, 1.0), (0, 0.0), (3, 2.0))
    )  # fmt: skip
    table = look_gains(probes, config).set_index(["metric", "difference"])
    first = table.loc["pass@1 gain", "clip_higher, easy_to_hard"]
    # mean .03, deviation .02646, t(2) = 4.303
    assert (first.value, first.low, first.high) == pytest.approx((0.03, -0.0357, 0.0957), abs=1e-4)
    assert set(table.n) == {9}, "as many pairs as there were, not as many as were asked for"
    between = table.loc["pass@8 gain", "clip_higher - symmetric"]
    assert (between.value, between.lowest, between.highest) == pytest.approx((0.0, -0.02, 0.02))
    alone = look_gains(probes[probes.seed == 0], GrpoConfig(seeds=(0,), policies=config.policies))
    assert alone.low.isna().all()
    assert alone.value.notna().all()
