"""The rows that GRPO runs leave behind, as figures and tables take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lore_lib.artifacts import read_jsonl
from lore_lib.training.checkpoints import FINISHED
from lore_lib.training.grpo_job import GrpoJob
from lore_lib.training.looks import PROBES

_KEYS = {
    "reward": "reward",
    "outcome": "outcome_reward",
    "rewards/format_reward/mean": "format_reward",
    "rewards/length_reward/mean": "length_reward",
    "parse_rate": "parse_rate",
    "top_label_share": "top_label_share",
    "no_reasoning_share": "no_reasoning_share",
    "entropy": "entropy",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
    "completions/mean_length": "mean_tokens",
    "completions/clipped_ratio": "cut_share",
    "zero_variance_share": "zero_variance_share",
    "refill_share": "refill_share",
    "idle_share": "idle_share",
    "sampling/sampling_logp_difference/mean": "engine_gap",
    "grad_norm": "grad_norm",
    "step_time": "seconds",
}


def history_rows(log: Sequence[dict[str, Any]], job: GrpoJob) -> list[dict[str, Any]]:
    """One row per update from the trainer's log, with our names; a key the trainer did not log is left out.

    Rewards, lengths and what was drawn are logged on the updates that drew samples only.
    ``zero_variance_share`` is of the groups drawn first, ``refill_share`` the groups drawn beyond those
    wanted, ``idle_share`` what is left of groups without signal in the batch (TRL's own
    ``frac_reward_zero_std`` misses those whose equal rewards do not average exactly in floating point).
    Entropy and clips are over completions with an advantage. ``engine_gap``, where vLLM draws, is how far its
    log-probabilities of the tokens are from the trainer's, on average, in nats.
    """
    rows = []
    for entry in log:
        values = {ours: float(entry[theirs]) for theirs, ours in _KEYS.items() if theirs in entry}
        if "grad_norm" in values or "reward" in values:
            step = int(entry["step"])
            rows.append(
                {
                    "seed": job.seed,
                    "variant": job.variant.name,
                    "step": step,
                    "rollout": (step - 1) // job.updates + 1,
                    **values,
                }
            )
    return rows


def run_rows(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(history, probes) of a finished run."""
    return pd.DataFrame(read_jsonl(folder / FINISHED)), pd.DataFrame(read_jsonl(folder / PROBES))


_PANELS = {
    "outcome_reward": ("reward", "outcome"),
    "format_reward": ("reward", "format"),
    "entropy": ("entropy (nats per token)", "mean"),
    "mean_tokens": ("tokens per completion", "mean"),
    "clip_low": ("clipped tokens (share)", "low"),
    "clip_high": ("clipped tokens (share)", "high"),
    "zero_variance_share": ("groups without signal (share)", "drawn first"),
    "idle_share": ("groups without signal (share)", "trained on"),
}


def health_rows(history: pd.DataFrame, probes: pd.DataFrame, k: int) -> pd.DataFrame:
    """What the recipe's runs logged, as `viz.figures.training_curves` takes it: a series per quantity."""
    looks = {"pass_at_1": ("dev pairs", "pass@1"), "pass_at_k": ("dev pairs", f"pass@{k}")}
    rows = pd.concat([_long(history, _PANELS), _long(probes, looks)], ignore_index=True)
    mine: pd.DataFrame = rows[rows.variant == history.variant.iloc[0]]
    return mine


def variant_rows(history: pd.DataFrame, probes: pd.DataFrame, k: int) -> pd.DataFrame:
    """What every variant's runs logged, as `viz.figures.training_curves` takes it: a series per policy.

    Where there are several curricula each has panels of its own, beside those of the others.
    """
    logged = {"outcome_reward": "outcome reward", "entropy": "entropy (nats per token)"}
    looks = {"pass_at_1": "pass@1, dev", "pass_at_k": f"pass@{k}, dev", "mean_tokens": "tokens, dev"}
    rows = pd.concat(
        _long(frame, {name: (panel, "") for name, panel in panels.items()})
        for frame, panels in ((history, logged), (probes, looks))
    )
    names = rows.variant.str.partition(", ")
    if names[2].nunique() == 1:
        return rows.assign(series=rows.variant).reset_index(drop=True)
    return rows.assign(panel=rows.panel + ": " + names[2], series=names[0]).reset_index(drop=True)


def _long(rows: pd.DataFrame, panels: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """variant, seed, rollout, quantity, panel, series, value; updates of one rollout are averaged."""
    keys = ["variant", "seed", "rollout"]
    means = rows.groupby(keys, sort=False)[list(panels)].mean().reset_index()
    long = means.melt(keys, list(panels)).dropna()
    long[["panel", "series"]] = [panels[name] for name in long.variable]
    return long.drop(columns="variable").assign(quantity=long.panel)


def compare_variants(probes: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """One row per variant: gains on dev pairs from the first look to the best and to the last, over seeds.

    Returns:
        Columns variant, seeds, start (pass@1), best and last (gain of pass@1), lowest and highest (of the
        last gain, among seeds), k_last (gain of pass@k), tokens (gain); and of the whole training clip_low
        and clip_high (share of tokens), entropy (its gain from the first fifth of the rollouts to the last).
    """
    rows = []
    for variant, part in probes.groupby("variant", sort=False):
        looks = part.sort_values("rollout").groupby("seed")
        first, last, best = looks.first(), looks.last(), looks.pass_at_1.max()
        gain = last.pass_at_1 - first.pass_at_1
        logged = history[history.variant == variant]
        entropy = logged.groupby("rollout").entropy.mean()
        fifth = max(1, len(entropy) // 5)
        rows.append(
            {
                "variant": variant,
                "seeds": len(first),
                "start": first.pass_at_1.mean(),
                "best": (best - first.pass_at_1).mean(),
                "last": gain.mean(),
                "lowest": gain.min(),
                "highest": gain.max(),
                "k_last": (last.pass_at_k - first.pass_at_k).mean(),
                "tokens": (last.mean_tokens - first.mean_tokens).mean(),
                "clip_low": logged.clip_low.mean(),
                "clip_high": logged.clip_high.mean(),
                "entropy": entropy.tail(fifth).mean() - entropy.head(fifth).mean(),
            }
        )
    return pd.DataFrame(rows)
