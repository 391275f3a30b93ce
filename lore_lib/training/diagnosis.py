"""What went wrong in a training, read from the artefacts it left: the paper's failure signatures and our own.

Each detector looks at rows, says whether its sign is there, and on what evidence; the remedy is the usual
one. A sign that cannot be judged, because its rows are missing or too few, is left out.

Groups that are trained on were chosen because their completions differ, so they could not show a collapse:
entropy is read from the looks at fixed dev pairs, the marks of a hacked reward from the groups drawn first.

The paper names four: pass@1 falls after tuning on chains while pass@8 does not (teacher and student read
different contexts), the reward stops early (entropy collapse, or saturated prompts), the visual subset lags
(the captions miss it), queries of one kind stay wrong (knowledge or a rule is missing). Its thresholds are
not public; those here are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lore_lib.artifacts import read_parquet
from lore_lib.errors import ArtifactError
from lore_lib.rng import generator
from lore_lib.sampling.intervals import cluster_bootstrap, paired_difference
from lore_lib.sampling.pass_at_k import summarise

LEAST_ROLLOUTS = 6  # fewer are no training to judge
LEAST_PAIRS = 10  # of a kind
ENGINE_GAP = 0.05  # nats per token; the rounding of another engine moves it less, other weights more
RESAMPLES = 500

# By stage of the chain, what a kind of pair needs beyond the text that stands before the model.
KINDS = {
    "knowledge": (
        "knowledge is missing",
        "look at the recall table of 02_cot_synthesis: more selling points, clicks or another cot.retrieval; "
        "then more train pairs with such queries",
    ),
    "boundary": (
        "a rule is missing",
        "read chains of this kind against the rules of the vertical; add the rule or its cases to the train "
        "pairs",
    ),
    "visual": (
        "the captions miss what decides",
        "look at caption accuracy in 01_features; a better captioner, or captions guided by the query",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One sign: its name, whether it is there, the numbers that say so, and what usually helps."""

    sign: str
    found: bool
    evidence: str
    remedy: str


@dataclass(frozen=True)
class Artefacts:
    """The rows a diagnosis reads; an empty frame where there are none.

    Attributes:
        pairs: pair_id, query_id, label, kind.
        samples: of the tuned arms: `sampling.engine.SAMPLE_COLUMNS`.
        tuned: of the models after reinforcement learning: likewise.
        history: of the recipe's runs: `training.grpo_rows.history_rows`.
        probes: likewise, one row per look.
        start: the tuned arm that reinforcement learning began with; "" for the last one.
    """

    pairs: pd.DataFrame
    samples: pd.DataFrame
    tuned: pd.DataFrame
    history: pd.DataFrame
    probes: pd.DataFrame
    start: str = ""

    @property
    def before(self) -> pd.DataFrame:
        """The samples of the arm that reinforcement learning began with."""
        if self.samples.empty:
            return self.samples
        systems = self.samples.system
        rows: pd.DataFrame = self.samples[systems == (self.start or systems.iloc[-1])]
        return rows


def read_artefacts(run: Path) -> Artefacts:
    """The rows of a run's finished or running stages.

    Raises:
        ArtifactError: the run has no prompts yet.
    """

    def table(stage: str, name: str) -> pd.DataFrame:
        path = run / stage / f"{name}.parquet"
        return read_parquet(path) if path.is_file() else pd.DataFrame()

    pairs = table("01_features", "prompts")
    if pairs.empty:
        raise ArtifactError(f"{run} has no 01_features/prompts.parquet; run: lore run --run {run.name}")
    history, probes = (recipe(table("05_grpo", name)) for name in ("history", "probes"))
    samples, tuned = table("04_pass_at_8", "samples"), table("05_grpo", "samples")
    pool = table("04_pass_at_8", "pool-samples")
    start = str(pool.system.iloc[0]) if len(pool) else ""
    return Artefacts(pairs[["pair_id", "query_id", "label", "kind"]], samples, tuned, history, probes, start)


def recipe(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first variant, which later stages use."""
    return rows[rows.variant == rows.variant.iloc[0]] if len(rows) else rows


def diagnose(artefacts: Artefacts) -> list[Finding]:
    """Every sign that can be judged, those found first."""
    findings = [finding for detector in DETECTORS for finding in detector(artefacts)]
    return sorted(findings, key=lambda finding: not finding.found)


def findings_table(findings: list[Finding]) -> pd.DataFrame:
    """The findings as rows; the remedy stands only where it is needed."""
    rows = [
        (f.sign, "FOUND" if f.found else "clear", f.evidence, f.remedy if f.found else "") for f in findings
    ]
    return pd.DataFrame(rows, columns=["sign", "verdict", "evidence", "remedy"])


def teacher_shift(artefacts: Artefacts) -> list[Finding]:
    """Chains cost the first try while what eight tries reach is kept: the paper's sign of distillation."""
    if artefacts.samples.empty or "direct" not in set(artefacts.samples.system):
        return []
    scored = {
        name: summarise(part, artefacts.pairs, int(part.groupby("pair_id").size().min()))
        for name, part in artefacts.samples.groupby("system", sort=False)
    }
    direct, findings = scored["direct"], []
    for arm in ("naive", "progressive"):
        if arm in scored and scored[arm].pair_id.equals(direct.pair_id):
            rng = generator(0, "diagnosis", arm)
            one, many = (
                paired_difference(scored[arm][name], direct[name], direct.query_id, RESAMPLES, rng)
                for name in ("pass_at_1", "pass_at_k")
            )
            evidence = f"pass@1 {_points(one)}, pass@k {_points(many)} against direct"
            findings += [
                Finding(
                    f"{arm} chains: pass@1 falls, pass@k does not",
                    one[2] < 0 <= many[2],
                    evidence,
                    "teacher and student read different contexts: put the evidence into the chain "
                    "(progressive), let the student write its chains (on-policy), then reinforce",
                ),
                Finding(
                    f"{arm} chains: pass@1 and pass@k fall",
                    max(one[2], many[2]) < 0,
                    evidence,
                    "the student has not learnt to write the chains: more cot.pairs or sft.epochs; look at "
                    "its parse rate and its longest chains",
                ),
            ]
    return findings


def plateau(artefacts: Artefacts) -> list[Finding]:
    """Dev pairs stop improving early, and either entropy has collapsed or the prompts are used up."""
    history, probes = artefacts.history, artefacts.probes
    if not _long(history) or not _has(probes, "entropy") or probes.rollout.nunique() < 4:
        return []
    looks = _looks(probes, "pass_at_1")
    early, last = looks.iloc[: len(looks) // 2 + 1].max(), looks.iloc[-1]
    stopped = bool(last <= early + 0.005)
    entropy = _looks(probes, "entropy")
    flat = _last(history, "zero_variance_share")
    where = f"dev pass@1 {early:.3f} at half time, {last:.3f} at the end"
    return [
        Finding(
            "reward plateau: entropy collapse",
            bool(stopped and entropy.iloc[-1] < 0.25 * entropy.iloc[0]),
            f"{where}; entropy on dev pairs {entropy.iloc[0]:.3f} -> {entropy.iloc[-1]:.3f} nats per token",
            "nothing is left to explore: raise epsilon_high (clip-higher), lower grpo.learning_rate, raise "
            "sampling.temperature, or stop at the best look",
        ),
        Finding(
            "reward plateau: saturated prompts",
            stopped and flat > 0.6,
            f"{where}; {flat:.0%} of the last groups drawn first had no signal",
            "draw prompts that are neither solved nor hopeless: a pool measured with the trained model, a "
            "larger sampling.pool_pairs, where the reward is high a smaller grpo.easy_share",
        ),
    ]


def lagging_kinds(artefacts: Artefacts) -> list[Finding]:
    """Pairs of one kind stay behind plain ones by more than their interval."""
    samples = artefacts.tuned if len(artefacts.tuned) else artefacts.before
    if samples.empty:
        return []
    systems = samples.system.unique()
    runs = [summarise(samples[samples.system == name], artefacts.pairs, 1) for name in systems]
    means = pd.concat(runs).groupby(["pair_id", "query_id"], as_index=False).pass_at_1.mean()
    scored = means.merge(artefacts.pairs[["pair_id", "kind"]], on="pair_id")
    judge = f"mean of {len(systems)} GRPO runs" if len(systems) > 1 else systems[0]
    plain, findings = scored[scored.kind == "plain"], []
    for kind, (cause, remedy) in KINDS.items():
        rows = scored[scored.kind == kind]
        if min(len(rows), len(plain)) >= LEAST_PAIRS:
            rng = generator(0, "diagnosis", kind)
            low, high = cluster_bootstrap(rows.pass_at_1, rows.query_id, RESAMPLES, rng)
            findings.append(
                Finding(
                    f"{kind} pairs lag: {cause}",
                    bool(high < plain.pass_at_1.mean() - 0.05),
                    f"pass@1 {rows.pass_at_1.mean():.3f} [{low:.3f}, {high:.3f}] of {len(rows)} pairs, "
                    f"plain {plain.pass_at_1.mean():.3f} ({judge})",
                    remedy,
                )
            )
    return findings


def format_loss(artefacts: Artefacts) -> list[Finding]:
    """Completions stop parsing, or stop reasoning."""
    if artefacts.probes.empty or not _long(artefacts.history, "no_reasoning_share"):
        return []
    parsed = _looks(artefacts.probes, "parse_rate")
    silent = _last(artefacts.history, "no_reasoning_share")
    return [
        Finding(
            "format is lost",
            bool(parsed.iloc[-1] < min(0.9, parsed.iloc[0] - 0.02)),
            f"parse rate on dev pairs {parsed.iloc[0]:.3f} -> {parsed.iloc[-1]:.3f}",
            "raise grpo.format_reward, lower grpo.learning_rate; look at the parse kinds in 04_pass_at_8",
        ),
        Finding(
            "reasoning is empty",
            silent > 0.2,
            f"{silent:.0%} of the last completions drawn first state a label without reasoning",
            "raise grpo.format_reward: it is paid only for a completion that reasons",
        ),
    ]


def length_drift(artefacts: Artefacts) -> list[Finding]:
    """Completions grow by a quarter or more, or are cut. (Shorter ones are what the paper saw.)"""
    if artefacts.probes.empty or not _long(artefacts.history, "cut_share"):
        return []
    tokens, cut = (
        _looks(artefacts.probes, "mean_tokens"),
        _last(artefacts.history, "cut_share"),
    )
    return [
        Finding(
            "length drifts up",
            bool(tokens.iloc[-1] > 1.25 * tokens.iloc[0] or cut > 0.05),
            f"{tokens.iloc[0]:.1f} -> {tokens.iloc[-1]:.1f} tokens on dev pairs, {cut:.1%} of the last "
            "completions drawn first are cut",
            "raise grpo.overlong_penalty, or sampling.max_completion_tokens where good answers are cut",
        )
    ]


def one_label(artefacts: Artefacts) -> list[Finding]:
    """The policy states nearly the same label for every pair."""
    if not _long(artefacts.history, "top_label_share"):
        return []
    share = _last(artefacts.history, "top_label_share")
    return [
        Finding(
            "one label for everything",
            share > 0.7,
            f"{share:.0%} of the last completions drawn first state the same label",
            "balance the labels of the pool; grpo.outcome=exact pays nothing for the neighbour's label",
        )
    ]


def hacked_reward(artefacts: Artefacts) -> list[Finding]:
    """The reward is no more than a policy that never looks earns, or the reasoning names every label."""
    history = artefacts.history
    if not _long(history, "drawn_reward", "hack_reward", "stuffed_share"):
        return []
    earned, hack = _last(history, "drawn_reward"), _last(history, "hack_reward")
    first, last = _first(history, "stuffed_share"), _last(history, "stuffed_share")
    return [
        Finding(
            "a hack earns as much",
            earned < hack + 0.05,
            f"the last completions drawn first earn {earned:.3f}, the best hack of the pool {hack:.3f}",
            "read completions of the last look; balance the labels of the pool, grpo.outcome=exact, or begin "
            "with a better tuned arm",
        ),
        Finding(
            "labels are stuffed into the reasoning",
            last > 0.2 and last > first + 0.1,
            f"{first:.0%} -> {last:.0%} of the completions drawn first name three labels or more in their "
            "reasoning",
            "the reasoning leaves open what the answer then guesses: reward the form of your chains, or stop "
            "at an earlier look",
        ),
    ]


def other_engine(artefacts: Artefacts) -> list[Finding]:
    """vLLM draws from another distribution than the one that is trained."""
    if not _long(artefacts.history, "engine_gap"):
        return []
    gap = _last(artefacts.history, "engine_gap")
    return [
        Finding(
            "vLLM draws with other weights or precision",
            gap > ENGINE_GAP,
            f"log-probabilities of the last tokens drawn are {gap:.3f} nats from the trainer's, on average",
            "float32 or bfloat16 alike on both sides (model.dtype, vllm serve --dtype), on a CPU "
            "grpo.engine=hf; TRL's correction of the loss stays on, but is meant for rounding alone",
        )
    ]


def no_signal(artefacts: Artefacts) -> list[Finding]:
    """Groups without differences, clips without effect: compute that teaches nothing."""
    if not _long(artefacts.history):
        return []
    history = artefacts.history
    idle, clipped = history.idle_share.mean(), float((history.clip_low + history.clip_high).mean())
    reused = history.groupby(["seed", "rollout"]).size().max() > 1
    findings = [
        Finding(
            "groups without signal",
            bool(idle > 0.3),
            f"{idle:.0%} of the groups trained on had equal rewards, after refills of "
            f"{history.refill_share.mean():.0%}",
            "more grpo.max_refills, more completions_per_prompt, or a pool measured with this model",
        )
    ]
    if reused:
        findings.append(
            Finding(
                "idle clips",
                clipped < 1e-4,
                f"{clipped:.2%} of the tokens were clipped",
                "epsilon and epsilon_high do nothing: raise grpo.learning_rate or grpo.updates_per_rollout",
            )
        )
    return findings


def lost_reach(artefacts: Artefacts) -> list[Finding]:
    """What several tries reach shrinks: on the test pairs, or on dev pairs where none were sampled yet."""
    sign = "pass@k is lost"
    remedy = (
        "the policy narrows more than it learns: let the rate fall (grpo.schedule=linear), stop earlier, "
        "draw more prompts (sampling.pool_pairs) or from the whole pool at all times "
        "(grpo.curricula=[shuffled])"
    )
    before, tuned = artefacts.before, artefacts.tuned
    if len(before) and len(tuned):
        k = int(min(rows.groupby(["system", "pair_id"]).size().min() for rows in (before, tuned)))
        old = summarise(before, artefacts.pairs, k)
        runs = [summarise(rows, artefacts.pairs, k) for _, rows in tuned.groupby("system", sort=False)]
        if all(run.pair_id.equals(old.pair_id) for run in runs):
            rng = generator(0, "diagnosis", "reach")
            one, many = (
                paired_difference(
                    np.mean([run[name] for run in runs], axis=0), old[name], old.query_id, RESAMPLES, rng
                )
                for name in ("pass_at_1", "pass_at_k")
            )
            each = ", ".join(f"{run.pass_at_k.mean() - old.pass_at_k.mean():+.3f}" for run in runs)
            evidence = (
                f"on {len(old)} test pairs pass@1 {_points(one)}, pass@{k} {_points(many)} since the start "
                f"(by run {each})"
            )
            return [Finding(sign, many[2] < 0, evidence, remedy)]
    if artefacts.probes.empty or not _long(artefacts.history):
        return []
    looks = [_looks(artefacts.probes, name) for name in ("pass_at_1", "pass_at_k")]
    one_dev, many_dev = (each.iloc[-1] - each.iloc[0] for each in looks)
    tries = artefacts.probes.sort_values("rollout").groupby("seed").pass_at_k
    seeds = ", ".join(f"{gain:+.3f}" for gain in tries.last() - tries.first())
    evidence = f"on dev pairs pass@1 {one_dev:+.3f}, pass@k {many_dev:+.3f} since the start (by seed {seeds})"
    return [Finding(sign, bool(many_dev < -0.03), evidence, remedy)]


DETECTORS: tuple[Callable[[Artefacts], list[Finding]], ...] = (
    teacher_shift, plateau, lagging_kinds, format_loss, length_drift, one_label, hacked_reward, no_signal,
    lost_reach, other_engine,
)  # fmt: skip


def _has(rows: pd.DataFrame, *names: str) -> bool:
    """Whether the columns are there; rows of an earlier run may lack them."""
    return set(names) <= set(rows)


def _long(history: pd.DataFrame, *names: str) -> bool:
    """Whether there was a training to judge, and it logged these columns."""
    return len(history) > 0 and history.rollout.max() >= LEAST_ROLLOUTS and _has(history, *names)


def _first(history: pd.DataFrame, name: str) -> float:
    """Mean of the first fifth of a column over training, seeds together, of the rows that have it."""
    known = history.sort_values("rollout", kind="stable")[name].dropna()
    return float(known.head(max(1, len(known) // 5)).mean())


def _looks(probes: pd.DataFrame, name: str) -> pd.Series:
    """Mean over seeds by rollout; a seed that stopped early keeps its last look, so that all count."""
    return probes.pivot_table(name, "rollout", "seed").ffill().mean(axis=1)


def _last(history: pd.DataFrame, name: str) -> float:
    return _first(history.assign(rollout=-history.rollout), name)


def _points(difference: tuple[float, float, float]) -> str:
    value, low, high = difference
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
