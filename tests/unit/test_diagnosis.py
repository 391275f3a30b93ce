"""Each detector finds artefacts that were made to fail in just its way, and is silent on healthy ones.

Made rows show where each verdict turns; real runs of a tiny model show that what is logged can reach it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lore_lib.artifacts import write_parquet
from lore_lib.errors import ArtifactError
from lore_lib.training.diagnosis import (
    Artefacts,
    diagnose,
    findings_table,
    read_artefacts,
    recipe,
)
from lore_lib.training.grpo import train_grpo
from lore_lib.training.grpo_job import GrpoJob
from lore_lib.training.grpo_rows import run_rows
from lore_lib.training.rewards import Grading
from lore_lib.training.sft import SftJob, train_sft

KINDS = ("plain", "knowledge", "boundary", "visual")
ROLLOUTS, N = 10, 8


def sampled(system: str, right: Callable[[str], float]) -> pd.DataFrame:
    """Samples of 80 pairs, 20 of a kind; so many of the 8 are right on a pair of that kind."""
    rows = []
    for number in range(80):
        share = right(KINDS[number % 4])
        for sample in range(N):
            label = "L4" if sample < round(share * N) else "L1"
            rows.append((system, f"p{number:02}", f"q{number // 4}", sample, label, "ok", 30))
    columns = ["system", "pair_id", "query_id", "sample", "label", "parse_kind", "tokens"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def healthy() -> Artefacts:
    """Two seeds whose dev pairs improve to the end, on top of arms that lost nothing."""
    progress = np.linspace(0, 1, ROLLOUTS)
    history = pd.concat(
        pd.DataFrame(
            {
                "variant": "recipe",
                "seed": seed,
                "step": np.arange(1, 2 * ROLLOUTS + 1),
                "rollout": np.repeat(np.arange(1, ROLLOUTS + 1), 2),
                "clip_low": 0.004,
                "clip_high": 0.003,
                "zero_variance_share": np.repeat(0.3 + 0.1 * progress, 2),
                "refill_share": 0.5,
                "idle_share": 0.05,
                "cut_share": 0.0,
                "top_label_share": 0.3,
                "no_reasoning_share": 0.0,
                "stuffed_share": 0.02,
                "drawn_reward": np.repeat(0.8 + 0.1 * progress, 2),
                "hack_reward": 0.5,
                "engine_gap": 0.004,
            }
        )
        for seed in (0, 1)
    )
    drawn = [
        "zero_variance_share",
        "refill_share",
        "idle_share",
        "cut_share",
        "top_label_share",
        "no_reasoning_share",
        "stuffed_share",
        "drawn_reward",
        "hack_reward",
        "engine_gap",
    ]
    history.loc[history.step % 2 == 0, drawn] = np.nan  # logged on the updates that drew
    looks = pd.DataFrame({"rollout": [0, 2, 4, 6, 8, 10]})
    share = looks.rollout / ROLLOUTS
    probes = pd.concat(
        looks.assign(
            variant="recipe",
            seed=seed,
            pass_at_1=0.75 + 0.08 * share,
            pass_at_k=0.95,
            mean_tokens=40 - 3 * share,
            parse_rate=0.98 + 0.01 * share,
            entropy=0.10 - 0.04 * share,
        )
        for seed in (0, 1)
    )
    pairs = sampled("x", lambda kind: 1).drop_duplicates("pair_id")[["pair_id", "query_id"]]
    kinds = [KINDS[number % 4] for number in range(len(pairs))]
    samples = pd.concat(
        [
            sampled("direct", lambda kind: 0.5),
            sampled("naive", lambda kind: 0.5),
            sampled("progressive", lambda kind: 0.75),
        ]
    )
    return Artefacts(
        pairs.assign(label="L4", kind=kinds),
        samples,
        sampled("grpo seed 0", lambda kind: 0.875),
        history,
        probes,
        "progressive",
    )


def found(artefacts: Artefacts) -> set[str]:
    return {finding.sign for finding in diagnose(artefacts) if finding.found}


def history_with(artefacts: Artefacts, **columns: object) -> Artefacts:
    return replace(artefacts, history=artefacts.history.assign(**columns))


def probes_with(artefacts: Artefacts, **columns: object) -> Artefacts:
    return replace(artefacts, probes=artefacts.probes.assign(**columns))


def stopped(artefacts: Artefacts) -> Artefacts:
    """Dev pass@1 rises up to half time and no more."""
    rising = np.minimum(artefacts.probes.rollout, ROLLOUTS // 2)
    return probes_with(artefacts, pass_at_1=0.75 + 0.01 * rising)


def late(artefacts: Artefacts, column: str, value: float) -> Artefacts:
    """A column of the history that takes another value in the last half of training."""
    values = artefacts.history[column].where(artefacts.history.rollout <= ROLLOUTS // 2, value)
    return history_with(artefacts, **{column: values})


def certain(artefacts: Artefacts) -> Artefacts:
    """Entropy that is nearly gone at the last looks."""
    return probes_with(artefacts, entropy=0.1 * 0.5**artefacts.probes.rollout)


def lost(artefacts: Artefacts) -> Artefacts:
    """Every eighth test pair, a plain one, is now never right, the others always."""
    never = artefacts.tuned.pair_id.str[1:].astype(int) % 8 == 0
    return replace(artefacts, tuned=artefacts.tuned.assign(label=np.where(never, "L1", "L4")))


def untested(artefacts: Artefacts) -> Artefacts:
    """Before the test pairs were sampled."""
    return replace(artefacts, tuned=pd.DataFrame())


def kinds_with(artefacts: Artefacts, kind: str) -> Artefacts:
    return replace(artefacts, tuned=sampled("grpo seed 0", lambda each: 0.5 if each == kind else 0.875))


def arms_with(artefacts: Artefacts, arm: str, right: float) -> Artefacts:
    """One arm right in another share of its samples than direct, whose share is .75."""
    arms = [sampled("direct", lambda kind: 0.75), sampled(arm, lambda kind: right)]
    return replace(artefacts, samples=pd.concat(arms))


FAILURES: dict[str, Callable[[Artefacts], Artefacts]] = {
    "naive chains: pass@1 falls, pass@k does not": lambda a: arms_with(a, "naive", 0.5),
    "naive chains: pass@1 and pass@k fall": lambda a: arms_with(a, "naive", 0.0),
    "progressive chains: pass@1 falls, pass@k does not": lambda a: arms_with(a, "progressive", 0.5),
    "progressive chains: pass@1 and pass@k fall": lambda a: arms_with(a, "progressive", 0.0),
    "reward plateau: entropy collapse": lambda a: certain(stopped(a)),
    "reward plateau: saturated prompts": lambda a: late(stopped(a), "zero_variance_share", 0.9),
    "knowledge pairs lag: knowledge is missing": lambda a: kinds_with(a, "knowledge"),
    "boundary pairs lag: a rule is missing": lambda a: kinds_with(a, "boundary"),
    "visual pairs lag: the captions miss what decides": lambda a: kinds_with(a, "visual"),
    "format is lost": lambda a: probes_with(a, parse_rate=0.98 - 0.03 * a.probes.rollout),
    "reasoning is empty": lambda a: late(a, "no_reasoning_share", 0.6),
    "length drifts up": lambda a: probes_with(a, mean_tokens=40 + 3 * a.probes.rollout),
    "one label for everything": lambda a: late(a, "top_label_share", 0.95),
    "a hack earns as much": lambda a: late(a, "drawn_reward", 0.5),
    "labels are stuffed into the reasoning": lambda a: late(a, "stuffed_share", 0.6),
    "vLLM draws with other weights or precision": lambda a: late(a, "engine_gap", 0.2),
    "groups without signal": lambda a: history_with(a, idle_share=0.6),
    "idle clips": lambda a: history_with(a, clip_low=0.0, clip_high=0.0),
    "pass@k is lost": lost,
}


def test_a_healthy_run_is_judged_on_every_sign_and_clear_of_all(healthy: Artefacts) -> None:
    findings = diagnose(healthy)
    assert {finding.sign for finding in findings} == set(FAILURES)
    assert [finding for finding in findings if finding.found] == []
    table = findings_table(findings)
    assert set(table.verdict) == {"clear"}
    assert set(table.remedy) == {""}
    assert table.evidence.str.contains(r"\d").all(), "every verdict has its numbers"


@pytest.mark.parametrize("sign", FAILURES)
def test_a_run_made_to_fail_in_one_way_shows_that_sign_alone(healthy: Artefacts, sign: str) -> None:
    failing = FAILURES[sign](healthy)
    assert found(failing) == {sign}
    first = findings_table(diagnose(failing)).iloc[0]
    assert (first.sign, first.verdict) == (sign, "FOUND"), "what was found stands first"
    assert len(first.remedy) > 20


def test_entropy_may_fall_and_prompts_be_used_up_while_dev_pairs_still_improve(healthy: Artefacts) -> None:
    assert found(certain(healthy)) == set()
    assert found(late(healthy, "zero_variance_share", 0.9)) == set()
    assert found(stopped(healthy)) == set(), "stopping is no sign without its cause"


def test_strictly_on_policy_runs_have_no_clips_to_be_idle(healthy: Artefacts) -> None:
    once = healthy.history[healthy.history.step % 2 == 1]
    findings = diagnose(history_with(replace(healthy, history=once), clip_low=0.0, clip_high=0.0))
    assert "idle clips" not in {finding.sign for finding in findings}


def test_what_cannot_be_judged_is_left_out(healthy: Artefacts) -> None:
    nothing = pd.DataFrame()
    assert diagnose(Artefacts(healthy.pairs, nothing, nothing, nothing, nothing)) == []
    short = replace(healthy, history=healthy.history[healthy.history.rollout < 4])
    judged = {finding.sign.split()[0] for finding in diagnose(short)}
    assert judged == {"naive", "progressive", "knowledge", "boundary", "visual", "pass@k"}
    earlier = replace(
        healthy,
        history=healthy.history.drop(columns=["stuffed_share", "engine_gap"]),
        probes=healthy.probes.drop(columns="entropy"),
    )
    left_out = {finding.sign for finding in diagnose(healthy)} - {
        finding.sign for finding in diagnose(earlier)
    }
    assert left_out == {
        "a hack earns as much",
        "labels are stuffed into the reasoning",
        "vLLM draws with other weights or precision",
        "reward plateau: entropy collapse",
        "reward plateau: saturated prompts",
    }, "a run logged by an earlier version"
    few = replace(healthy, pairs=healthy.pairs.assign(kind="plain"))
    assert not any("lag" in finding.sign for finding in diagnose(few))


def test_the_rows_are_read_from_the_stages_and_of_the_recipe_alone(
    healthy: Artefacts, tmp_path: Path
) -> None:
    run = tmp_path / "demo"
    with pytest.raises(ArtifactError, match="lore run --run demo"):
        read_artefacts(run)
    other = healthy.history.assign(variant="other", top_label_share=1.0)
    write_parquet(healthy.pairs.assign(prompt="x"), run / "01_features" / "prompts.parquet")
    write_parquet(healthy.samples, run / "04_pass_at_8" / "samples.parquet")
    write_parquet(sampled("progressive", lambda kind: 0.5), run / "04_pass_at_8" / "pool-samples.parquet")
    write_parquet(healthy.tuned, run / "05_grpo" / "samples.parquet")
    write_parquet(pd.concat([healthy.history, other]), run / "05_grpo" / "history.parquet")
    write_parquet(healthy.probes, run / "05_grpo" / "probes.parquet")
    read = read_artefacts(run)
    assert set(read.history.variant) == {"recipe"}
    assert read.start == "progressive"
    assert findings_table(diagnose(read)).equals(findings_table(diagnose(healthy)))
    assert recipe(pd.DataFrame()).empty


def test_a_seed_that_stopped_early_counts_to_the_end(healthy: Artefacts) -> None:
    probes = healthy.probes
    weak = probes.seed == 1  # lost reach, and was stopped half-way
    probes = probes.assign(pass_at_k=probes.pass_at_k.where(~weak, 0.95 - 0.03 * probes.rollout))
    probes = probes[~weak | (probes.rollout <= ROLLOUTS // 2)]
    assert "pass@k is lost" in found(untested(replace(healthy, probes=probes)))


def test_kinds_are_judged_by_all_runs_and_a_seed_that_lost_reach_is_named(healthy: Artefacts) -> None:
    runs = [
        sampled(f"grpo seed {n}", lambda kind, n=n: 0.875 - 0.75 * n * (kind == "visual")) for n in (0, 1)
    ]  # type: ignore[misc]
    (visual,) = [
        finding for finding in diagnose(replace(healthy, tuned=pd.concat(runs))) if "visual" in finding.sign
    ]
    assert visual.evidence.startswith("pass@1 0.500")
    assert visual.evidence.endswith("(mean of 2 GRPO runs)")
    weak = probes_with(healthy, pass_at_k=0.95 - 0.012 * healthy.probes.rollout * healthy.probes.seed)
    (reach,) = [finding for finding in diagnose(untested(weak)) if finding.sign == "pass@k is lost"]
    assert reach.found
    assert reach.evidence.endswith("pass@k -0.060 since the start (by seed +0.000, -0.120)")


def test_test_pairs_show_a_loss_of_reach_that_dev_pairs_do_not_and_the_other_way_round(
    healthy: Artefacts,
) -> None:
    runs = [lost(healthy).tuned, healthy.tuned.assign(system="grpo seed 1")]
    (reach,) = [
        finding
        for finding in diagnose(replace(healthy, tuned=pd.concat(runs)))
        if finding.sign == "pass@k is lost"
    ]
    assert reach.found
    assert "on 80 test pairs pass@1 +" in reach.evidence
    assert "pass@8 -0.062 [" in reach.evidence, "the mean of a run that lost .125 and one that lost nothing"
    assert reach.evidence.endswith("(by run -0.125, +0.000)")
    dev_falls = probes_with(healthy, pass_at_k=0.95 - 0.01 * healthy.probes.rollout)
    assert found(dev_falls) == set(), "the test pairs say more than the noisy looks"
    assert found(untested(dev_falls)) == {"pass@k is lost"}


DRESSES = pd.DataFrame({"pair_id": [f"p{i}" for i in range(32)]}).assign(
    query_id=lambda rows: [f"q{i // 2}" for i in range(len(rows))],
    prompt=[f"query: navy dress\ntitle: dress\nprice: {i % 8}" for i in range(32)],
    label=[f"L{1 + i % 4}" for i in range(32)],
    kind="plain",
)


@pytest.fixture(scope="module")
def guesser(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> GrpoJob:
    """A run from a tiny model that has learnt to reason in one word and to guess a label evenly."""
    folder = tmp_path_factory.mktemp("guesser")
    said = [f"<think>dress</think>[L{1 + (i // 4 + i) % 4}]" for i in range(len(DRESSES))]
    rows = write_parquet(DRESSES[["pair_id", "prompt"]].assign(completion=said), folder / "rows.parquet")
    tuned = SftJob("naive", str(tiny_model), rows, folder / "tuned", 20, 1e-2, 4, 0.1, 256, 1000)
    return GrpoJob(
        base=str(train_sft(tuned)),
        pool=write_parquet(DRESSES, folder / "pool.parquet"),
        probe=write_parquet(DRESSES.head(8), folder / "probe.parquet"),
        out=folder / "run",
        prompts_per_rollout=4,
        completions_per_prompt=8,
        updates_per_rollout=2,
        rollouts=6,
        learning_rate=1e-3,
        schedule="constant",  # what fails here does so by the end of a short run
        epsilon=0.2,
        epsilon_high=0.28,
        temperature=1.0,
        max_completion_tokens=16,
        probe_every_rollouts=2,
        probe_n=4,
        patience_looks=9,
        device="cpu",
    )


def trained(job: GrpoJob, out: Path) -> Artefacts:
    train_grpo(replace(job, out=out))
    nothing = pd.DataFrame()
    return Artefacts(DRESSES[["pair_id", "query_id", "label", "kind"]], nothing, nothing, *run_rows(out))


def test_a_run_with_a_gentle_rate_keeps_format_and_entropy(guesser: GrpoJob, tmp_path: Path) -> None:
    run = trained(replace(guesser, learning_rate=1e-5), tmp_path / "run")
    assert "idle clips" in found(run), "it hardly moves"
    assert found(run) <= {"idle clips", "a hack earns as much"}, "its guesses may be worth no more"
    assert run.probes.entropy.between(0.1, 0.4).all(), "one token of eight is a guess among four: ln 4 / 8"


def test_a_run_with_far_too_high_a_rate_loses_its_format(guesser: GrpoJob, tmp_path: Path) -> None:
    run = trained(replace(guesser, learning_rate=2e-2), tmp_path / "run")
    assert {"format is lost", "a hack earns as much", "pass@k is lost", "groups without signal"} <= found(run)
    assert run.probes.parse_rate.iloc[-1] == 0, "its entropy may be anything: that depends on the CPU"


def test_a_token_limit_that_cuts_every_answer_is_named(guesser: GrpoJob, tmp_path: Path) -> None:
    run = trained(replace(guesser, max_completion_tokens=5), tmp_path / "run")
    assert {"length drifts up", "groups without signal"} <= found(run)
    assert set(run.probes.parse_rate) == {0.0}


def test_a_pool_of_nearly_one_label_ends_in_one_label_without_entropy(
    guesser: GrpoJob, tmp_path: Path
) -> None:
    """Most groups are equal by then; those that are trained on differ to the last."""
    labels = ["L1", *["L4"] * (len(DRESSES) - 1)]  # of one label alone a pool is refused
    pool = write_parquet(DRESSES.assign(label=labels), tmp_path / "pool.parquet")
    paid = replace(guesser, pool=pool, grading=Grading("exact"), learning_rate=2e-3, rollouts=14)
    run = trained(paid, tmp_path / "run")
    assert found(run) >= {
        "one label for everything",
        "a hack earns as much",
        "reward plateau: entropy collapse",
    }
    assert run.probes.entropy.iloc[-1] < 0.25 * run.probes.entropy.iloc[0]
