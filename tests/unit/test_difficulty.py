"""Difficulty strata, the RL pool and the curriculum."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore_lib.config import GrpoConfig
from lore_lib.errors import DataError
from lore_lib.sampling.strata import (
    STRATA,
    curriculum_order,
    curriculum_window,
    hard_sample_pool,
    pool_reasons,
    stratify,
    window_shares,
)


def pairs_of(correct: list[int], n: int = 8) -> pd.DataFrame:
    return pd.DataFrame({"pair_id": [f"p{i}" for i in range(len(correct))], "n": n, "correct": correct})


def test_strata_of_eight_samples() -> None:
    names = stratify(pairs_of(list(range(9))))["stratum"].tolist()
    assert names == ["unsolved", "hard", "hard", "medium", "medium", "medium", "easy", "easy", "solved"]


def test_a_pair_on_a_boundary_is_in_the_harder_stratum() -> None:
    assert stratify(pairs_of([2, 4, 5], n=6))["stratum"].tolist() == ["hard", "medium", "easy"]


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_strata_are_monotone_and_exact_at_the_ends(drawn: tuple[int, int]) -> None:
    n, c = drawn
    codes = stratify(pairs_of(list(range(n + 1)), n))["stratum"].cat.codes.to_numpy()
    assert (np.diff(codes) >= 0).all()
    assert (codes[c] == 0) == (c == 0)
    assert (STRATA[codes[c]] == "solved") == (c == n)


def test_strata_refuse_impossible_counts() -> None:
    for n, c in ((8, 9), (8, -1), (0, 0)):
        with pytest.raises(DataError, match="0 <= correct <= n"):
            stratify(pairs_of([c], n))


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=60).filter(lambda row: any(0 < c < 8 for c in row)),
    st.floats(0, 0.9),
    st.integers(1, 50),
    st.integers(0, 5),
)
def test_pool_holds_what_it_says(correct: list[int], share: float, size: int, seed: int) -> None:
    pool = hard_sample_pool(pairs_of(correct), share, size, np.random.default_rng(seed))
    learnable, retained = (pool[pool["reason"] == reason] for reason in ("learnable", "retained"))
    assert 1 <= len(pool) <= size
    assert len(learnable) + len(retained) == len(pool)
    assert pool["pair_id"].is_unique
    assert learnable["correct"].between(1, 7).all()
    assert (retained["correct"] == 8).all()
    assert len(retained) <= len(learnable) * share / (1 - share) + 1


def test_pool_has_the_stated_share_when_there_is_enough_of_both() -> None:
    pool = hard_sample_pool(pairs_of([4] * 500 + [8] * 500 + [0] * 100), 0.2, 100, np.random.default_rng(0))
    assert pool["reason"].value_counts().to_dict() == {"learnable": 80, "retained": 20}
    short = hard_sample_pool(pairs_of([4] * 40 + [8] * 500), 0.2, 100, np.random.default_rng(0))
    assert short["reason"].value_counts().to_dict() == {"learnable": 40, "retained": 10}


def test_empty_pool_names_the_fix() -> None:
    with pytest.raises(DataError, match=r"'unsolved': 2.*raise sampling.temperature"):
        hard_sample_pool(pairs_of([0, 0, 8]), 0.2, 10, np.random.default_rng(0))


@pytest.mark.parametrize(("share", "size"), [(1.0, 10), (-0.1, 10), (0.2, 0)])
def test_pool_refuses_settings_out_of_range(share: float, size: int) -> None:
    with pytest.raises(DataError, match="easy_share"):
        hard_sample_pool(pairs_of([4]), share, size, np.random.default_rng(0))


@settings(max_examples=50)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=60), st.integers(0, 5))
def test_curriculum_is_a_permutation_from_easy_to_hard(correct: list[int], seed: int) -> None:
    pool = stratify(pairs_of(correct))
    pool["reason"] = np.where(pool["correct"] == 8, "retained", "learnable")
    ordered = curriculum_order(pool, np.random.default_rng(seed))
    assert sorted(ordered["pair_id"]) == sorted(pool["pair_id"])
    learnable = ordered.loc[ordered["reason"] == "learnable", "stratum"].cat.codes.to_numpy()
    assert (np.diff(learnable) <= 0).all()


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0.01, 1), st.integers(1, 40))
def test_a_window_lies_in_the_pool_and_ends_where_the_pool_ends(
    size: int, progress: float, share: float, least: int
) -> None:
    window = curriculum_window(size, progress, share, least=least)
    assert 0 <= window.start < window.stop <= size
    assert len(window) == min(size, max(least, round(share * size)))
    assert curriculum_window(size, 0, share).start == 0
    assert curriculum_window(size, 1, share).stop == size
    assert curriculum_window(size, progress, share, "shuffled") == range(size)


def test_curriculum_strews_retained_pairs_and_shuffles_within_a_stratum() -> None:
    pool = hard_sample_pool(pairs_of([2, 4, 7] * 40 + [8] * 100), 0.2, 150, np.random.default_rng(0))
    first, second = (curriculum_order(pool, np.random.default_rng(seed)) for seed in (1, 2))
    windows = [part.sum() for part in np.array_split((first["reason"] == "retained").to_numpy(), 5)]
    assert max(windows) - min(windows) <= 1
    assert first["pair_id"].tolist() != second["pair_id"].tolist()
    assert first["pair_id"].tolist() == curriculum_order(pool, np.random.default_rng(1))["pair_id"].tolist()


def test_every_sampled_pair_is_counted_with_the_reason_for_which_it_is_in_the_pool_or_not() -> None:
    sampled = stratify(pairs_of([0, 0, 2, 5, 7, 8, 8, 8]))
    pool = hard_sample_pool(sampled, 0.25, 4, np.random.default_rng(0))
    table = pool_reasons(sampled, pool)
    assert table.to_numpy().sum() == 8
    assert table.loc["unsolved"].tolist() == [0, 0, 2]
    assert table.loc["solved"].tolist() == [0, 1, 2]
    assert table.loc["hard"].tolist() == [1, 0, 0]


def test_window_shares_by_hand() -> None:
    """Ten easy and ten hard pairs, a window of ten, eleven rollouts: one hard pair more in each."""
    pool = stratify(pairs_of([7] * 10 + [1] * 10)).assign(reason="learnable")
    table = window_shares(pool, GrpoConfig(rollouts=11, prompts_per_rollout=4), stops=11)
    assert table.index.tolist() == list(range(1, 12))
    assert table["hard"].tolist() == pytest.approx(np.arange(11) / 10)
    assert table["easy"].tolist() == pytest.approx(1 - np.arange(11) / 10)
    assert not table[["medium", "solved"]].to_numpy().any()
    alone = window_shares(pool, GrpoConfig(rollouts=1, curricula=("shuffled",)))
    assert alone.loc[1, ["easy", "hard"]].tolist() == [0.5, 0.5]
