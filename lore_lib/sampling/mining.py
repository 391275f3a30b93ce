"""Hard samples: which pairs a model gets wrong, how, and what that says about the remedy."""

from __future__ import annotations

import pandas as pd

from lore_lib.sampling.pass_at_k import PARSED
from lore_lib.sampling.strata import stratify

WAYS: dict[str, str] = {
    "unreadable": "half of the samples or more do not parse: form first, by more tuning or a longer limit",
    "systematic": "three quarters or more give one wrong label: a piece of knowledge or a rule is missing",
    "scattered": "wrong answers differ: the model wavers, which reward can settle",
}
"""How a pair goes wrong, and what is tried first."""


def hard_samples(per_pair: pd.DataFrame, samples: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame:
    """The unsolved and hard pairs, hardest first, with the way in which each goes wrong.

    Args:
        per_pair: what `pass_at_k.summarise` gives for one system.
        samples: of the same system: pair_id, label, parse_kind.
        gold: pair_id, label.

    Returns:
        Columns pair_id, gold, n, correct, stratum, wrong (the wrong label given most often, "" if none could
        be read), wrong_share and unread_share (of n), way (a key of ``WAYS``).

    Example:
        >>> drawn = pd.DataFrame({"pair_id": "p", "label": ["L4"] * 8, "parse_kind": "ok"})
        >>> per_pair = pd.DataFrame({"pair_id": ["p"], "n": [8], "correct": [0]})
        >>> hard_samples(per_pair, drawn, pd.DataFrame({"pair_id": ["p"], "label": ["L2"]})).way.tolist()
        ['systematic']
    """
    truth = gold.set_index("pair_id")["label"]
    levels = stratify(per_pair)[["pair_id", "n", "correct", "stratum"]]
    hard = levels[levels["stratum"].isin(["unsolved", "hard"])].assign(
        gold=lambda rows: rows.pair_id.map(truth)
    )
    wrong = samples[samples["label"] != samples["pair_id"].map(truth)]
    read = wrong[wrong["parse_kind"] == PARSED].groupby("pair_id")["label"].value_counts()
    top = read.reset_index().drop_duplicates("pair_id").set_index("pair_id")
    hard["wrong"] = hard.pair_id.map(top["label"]).fillna("")
    hard["wrong_share"] = hard.pair_id.map(top["count"]).fillna(0) / hard["n"]
    unread = (samples["parse_kind"] != PARSED).groupby(samples["pair_id"]).sum()
    hard["unread_share"] = hard.pair_id.map(unread) / hard["n"]
    hard["way"] = "scattered"
    hard.loc[hard["wrong_share"] >= 0.75, "way"] = "systematic"
    hard.loc[hard["unread_share"] >= 0.5, "way"] = "unreadable"
    order = ["pair_id", "gold", "n", "correct", "stratum", "wrong", "wrong_share", "unread_share", "way"]
    return hard.sort_values(["correct", "wrong_share"], ascending=[True, False], ignore_index=True)[order]
