"""The rows that GRPO runs leave behind, as figures and tables take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lore_lib.artifacts import read_jsonl
from lore_lib.completion import parse
from lore_lib.sampling.pass_at_k import expected_chance_pass_at_k
from lore_lib.training.checkpoints import FINISHED
from lore_lib.training.grpo_job import GrpoJob
from lore_lib.training.looks import PROBES

_KEYS = {
    "reward": "reward",
    "outcome": "outcome_reward",
    "rewards/format_reward/mean": "format_reward",
    "rewards/length_reward/mean": "length_reward",
    "drawn_reward": "drawn_reward",
    "hack_reward": "hack_reward",
    "parse_rate": "parse_rate",
    "top_label_share": "top_label_share",
    "no_reasoning_share": "no_reasoning_share",
    "stuffed_share": "stuffed_share",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
    "completions/mean_length": "mean_tokens",
    "cut_share": "cut_share",
    "zero_variance_share": "zero_variance_share",
    "refill_share": "refill_share",
    "idle_share": "idle_share",
    "sampling/sampling_logp_difference/mean": "engine_gap",
    "grad_norm": "grad_norm",
    "step_time": "seconds",
}


def history_rows(log: Sequence[dict[str, Any]], job: GrpoJob) -> list[dict[str, Any]]:
    """One row per update from the trainer's log, with our names; a key the trainer did not log is left out.

    Rewards, lengths and what was drawn are logged on the updates that drew samples only. What
    `training.rewards.habits` counts, ``cut_share`` and ``zero_variance_share`` are of the groups drawn first,
    before any was chosen; ``hack_reward`` is what the best hack earns on the pool, beside ``drawn_reward``.
    All else is of the groups trained on. ``refill_share`` counts the groups drawn beyond those wanted,
    ``idle_share`` what is left of groups without signal (TRL's own ``frac_reward_zero_std`` misses those
    whose equal rewards do not average exactly in floating point). Clips are over completions with an
    advantage. ``engine_gap``, where vLLM draws, is how far its log-probabilities of the tokens are from the
    trainer's, on average, in nats. Entropy is not here but with the looks (`training.looks`).
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


_FIRST = "drawn first (share)"
_PANELS = {
    "drawn_reward": ("reward, drawn first", "model"),
    "hack_reward": ("reward, drawn first", "best hack"),
    "parse_rate": (_FIRST, "well-formed"),
    "top_label_share": (_FIRST, "commonest label"),
    "no_reasoning_share": (_FIRST, "no reasoning"),
    "stuffed_share": (_FIRST, "labels stuffed"),
    "mean_tokens": ("tokens per completion", "mean"),
    "clip_low": ("clipped tokens (share)", "low"),
    "clip_high": ("clipped tokens (share)", "high"),
    "zero_variance_share": ("groups without signal (share)", "drawn first"),
    "idle_share": ("groups without signal (share)", "trained on"),
}


def health_rows(history: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """What the recipe's runs logged, as `viz.figures.training_curves` takes it: a series per quantity."""
    k, looked = int(probes.n.iloc[0]), f"dev: {_looked(probes)} completions"
    looks = {
        "entropy": ("entropy (nats per token), dev", "mean"),
        "pass_at_1": (looked, "pass@1"),
        "pass_at_k": (looked, f"pass@{k}"),
    }
    rows = pd.concat([_long(history, _PANELS), _long(probes, looks, _chances(k))], ignore_index=True)
    mine: pd.DataFrame = rows[rows.variant == history.variant.iloc[0]]
    return mine


def variant_rows(history: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """What every variant's runs logged, as `viz.figures.training_curves` takes it: a series per policy.

    Where there are several curricula each has panels of its own, beside those of the others.
    """
    logged, k = {"drawn_reward": "reward, drawn first"}, int(probes.n.iloc[0])
    looks = {
        "entropy": "entropy (nats per token), dev",
        "pass_at_1": f"pass@1, dev {_looked(probes)}",
        "pass_at_k": f"pass@{k}, dev {_looked(probes)}",
        "mean_tokens": "tokens, dev",
    }
    rows = pd.concat(
        _long(frame, {name: (panel, "") for name, panel in panels.items()}, _chances(k))
        for frame, panels in ((history, logged), (probes, looks))
    )
    names = rows.variant.str.partition(", ")
    if names[2].nunique() == 1:
        return rows.assign(series=rows.variant).reset_index(drop=True)
    return rows.assign(panel=rows.panel + ": " + names[2], series=names[0]).reset_index(drop=True)


def _looked(probes: pd.DataFrame) -> str:
    """How much a look sees."""
    return f"{probes.pairs.iloc[0]:,} pairs x {probes.n.iloc[0]}"


def _chances(k: int) -> dict[str, float]:
    """What uniform guessing would show at a look."""
    return {"pass_at_1": expected_chance_pass_at_k(1), "pass_at_k": expected_chance_pass_at_k(k)}


def look_answers(probes: pd.DataFrame) -> pd.DataFrame:
    """What the last looks of the recipe's runs keep to be read, as `viz.widgets.verdict_cards` takes it.

    Returns:
        Columns system ("seed 0" ...), pair_id, completion, label, parse_kind; all runs show the same pairs.
    """
    rows, mine = [], probes[probes.variant == probes.variant.iloc[0]]
    for seed, examples in mine.sort_values("rollout").groupby("seed").examples.last().items():
        for one in examples:
            read = parse(one["completion"])
            rows.append((f"seed {seed}", one["pair_id"], one["completion"], read.label, read.kind))
    return pd.DataFrame(rows, columns=["system", "pair_id", "completion", "label", "parse_kind"])


def _long(
    rows: pd.DataFrame, panels: Mapping[str, tuple[str, str]], chances: Mapping[str, float] = {}
) -> pd.DataFrame:
    """variant, seed, rollout, quantity, panel, series, value, chance; updates of one rollout are averaged."""
    keys = ["variant", "seed", "rollout"]
    means = rows.groupby(keys, sort=False)[list(panels)].mean().reset_index()
    long = means.melt(keys, list(panels)).dropna()
    long[["panel", "series"]] = [panels[name] for name in long.variable]
    chance = long.variable.map(dict(chances)).astype(float)
    return long.drop(columns="variable").assign(quantity=long.panel, chance=chance)


def compare_variants(probes: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """One row per variant: gains on dev pairs from the first look to the best and to the last, over seeds.

    Returns:
        Columns variant, seeds, start (pass@1), best and last (gain of pass@1), lowest and highest (of the
        last gain, among seeds), k_last (gain of pass@k), tokens and entropy (gains to the last look); and of
        the whole training clip_low and clip_high (share of tokens).
    """
    rows = []
    for variant, part in probes.groupby("variant", sort=False):
        looks = part.sort_values("rollout").groupby("seed")
        first, last, best = looks.first(), looks.last(), looks.pass_at_1.max()
        gain = last.pass_at_1 - first.pass_at_1
        logged = history[history.variant == variant]
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
                "entropy": (last.entropy - first.entropy).mean(),
                "clip_low": logged.clip_low.mean(),
                "clip_high": logged.clip_high.mean(),
            }
        )
    return pd.DataFrame(rows)
