"""From the tables of a vertical to prompts: one row per pair."""

from __future__ import annotations

import pandas as pd

from lore_lib.errors import DataError
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.features.prompts import item_sections, render_prompt

PROMPT_COLUMNS = ["pair_id", "query_id", "item_id", "split", "kind", "intent", "industry", "label", "prompt"]


def caption_items(items: pd.DataFrame, captioner: PixelCaptioner) -> pd.Series:
    """What the captioner sees on each item's picture, indexed by ``item_id``; None where it abstains."""
    seen = [
        captioner(png, item_id) if png else None
        for item_id, png in zip(items.item_id, items.picture, strict=True)
    ]
    return pd.Series(seen, index=items.item_id.to_numpy(), dtype=object)


def build_prompts(
    tables: dict[str, pd.DataFrame], captions: pd.Series, budget: str, sections: tuple[str, ...] | None = None
) -> pd.DataFrame:
    """The user's turn for every pair.

    Args:
        tables: ``pairs``, ``queries`` and ``items``.
        captions: from :func:`caption_items`.
        budget: key of :data:`lore_lib.features.prompts.BUDGETS`.
        sections: keep only these item sections (an ablation); None keeps what the budget has.

    Returns:
        Frame with the columns of ``PROMPT_COLUMNS``, in the order of ``pairs``.

    Raises:
        DataError: a pair names a query or an item that does not exist.
    """
    pairs, queries, items = tables["pairs"], tables["queries"], tables["items"]
    for key, known in (("query_id", queries), ("item_id", items)):
        lost = pairs.loc[~pairs[key].isin(known[key]), ["pair_id", key]]
        if len(lost):
            first = lost.iloc[0]
            raise DataError(
                f"{len(lost)} pairs name an unknown {key}; first: pair {first.pair_id!r} -> {first[key]!r}"
            )
    text = {
        row["item_id"]: item_sections(row, captions[row["item_id"]]) for row in items.to_dict("records")
    }  # one pass over the items, however many pairs share them
    frame = pairs.merge(queries[["query_id", "query", "intent"]], on="query_id", how="left")
    frame = frame.merge(items[["item_id", "industry"]], on="item_id", how="left")
    frame["prompt"] = [
        render_prompt(query, _kept(text[item_id], sections), budget)
        for query, item_id in zip(frame["query"], frame["item_id"], strict=True)
    ]
    return frame[PROMPT_COLUMNS]


def _kept(sections: dict[str, str], names: tuple[str, ...] | None) -> dict[str, str]:
    return sections if names is None else {name: text for name, text in sections.items() if name in names}
