"""From the tables of a vertical to prompts: one row per pair."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lore_lib.errors import DataError
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.features.packing import Packer, token_counter
from lore_lib.features.prompts import Neutral, bare_tokens, item_sections
from lore_lib.features.template import Template, load_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lore_lib.vertical.definition import Vertical

PROMPT_COLUMNS = [
    "pair_id", "query_id", "item_id", "split", "kind", "intent", "industry", "label", "prompt", "dropped",
]  # fmt: skip

CHUNK = 10_000
"""Pairs written at a time, which bounds the memory beside the tables."""

_ITEM_FIELDS = ["item_id", "title", "cpv", "skus", "shop", "price", "selling_points"]


def caption_items(items: pd.DataFrame, captioner: PixelCaptioner) -> pd.Series:
    """What the captioner sees on each item's picture, indexed by ``item_id``; None where it abstains."""
    seen = [
        captioner(png, item_id) if png else None
        for item_id, png in zip(items.item_id, items.picture, strict=True)
    ]
    return pd.Series(seen, index=items.item_id.to_numpy(), dtype=object)


def caption_accuracy(
    items: pd.DataFrame, captions: pd.Series, vertical: Vertical, captioner: str
) -> pd.DataFrame:
    """How often the captioner, and the seller's text, tell the true value of each pictured dimension.

    Args:
        items: rows with ``truth``.
        captions: from :func:`caption_items`, in the order of the items.
        vertical: says what is pictured.
        captioner: its name.

    Returns:
        Columns dimension, system, right (share), n; no row where nothing is pictured.
    """
    truths, stated = items["truth"].map(json.loads), items["cpv"].map(json.loads)
    rows = []
    said = [text.split(", ") if isinstance(text, str) else [] for text in captions]
    for dimension in vertical.pictured:
        true, known = truths.str.get(dimension).to_numpy(), set(vertical.values(dimension))
        seen = np.array([next((value for value in one if value in known), None) for one in said], object)
        for system, says in ((captioner, seen), ("seller's text", stated.str.get(dimension).to_numpy())):
            rows.append((dimension, system, float((says == true).mean()), len(true)))
    return pd.DataFrame(rows, columns=["dimension", "system", "right", "n"])


def build_prompts(
    tables: Mapping[str, pd.DataFrame],
    captions: pd.Series,
    budget: str,
    sections: tuple[str, ...] | None = None,
    *,
    template: Template | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    rules: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """The user's turn for every pair, in the order of ``pairs``: :func:`stream_prompts` in one frame."""
    chunks = stream_prompts(
        tables, captions, budget, sections, template=template, tokenizer=tokenizer, rules=rules
    )
    return pd.concat(chunks, ignore_index=True)


def stream_prompts(
    tables: Mapping[str, pd.DataFrame],
    captions: pd.Series,
    budget: str,
    sections: tuple[str, ...] | None = None,
    *,
    template: Template | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    rules: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[pd.DataFrame]:
    """The user's turn for every pair, in frames of ``CHUNK`` rows: linear time, flat memory.

    Args:
        tables: ``pairs``, ``queries`` and ``items``.
        captions: from :func:`caption_items`.
        budget: key of the template's budgets.
        sections: keep only these item sections (an ablation); None keeps what the budget has.
        template: from :func:`lore_lib.features.template.load_template`; None is lore-nano's bare one.
        tokenizer: counts the tokens of the budget; with None the budget only chooses sections.
        rules: ``query_id`` -> rules to be shown with its pairs.

    Yields:
        Frames with the columns of ``PROMPT_COLUMNS``. ``dropped`` is a JSON object, section -> how many of
        its values the budget had no room for; :func:`count_dropped` sums it up.

    Raises:
        DataError: a pair names an unknown query or item, captions lack an item, keys repeat, the budget is
            unknown, or a query alone is longer than it.
    """
    pairs, queries, items = tables["pairs"], tables["queries"], tables["items"]
    query_at = _positions(pairs, "query_id", queries["query_id"])
    item_at = _positions(pairs, "item_id", items["item_id"])
    caption_at = _captioned(items["item_id"], captions)
    bare = bare_tokens(tokenizer)
    packer = Packer(template or load_template("nano"), budget, sections, token_counter(tokenizer))
    fields = items[_ITEM_FIELDS]
    for start in range(0, max(len(pairs), 1), CHUNK):
        part = pairs.iloc[start : start + CHUNK]
        pair_query, asked = pd.factorize(query_at[start : start + CHUNK])
        pair_item, shown = pd.factorize(item_at[start : start + CHUNK])
        chunk_queries = queries.iloc[asked]
        chunk_items = fields.iloc[shown].to_dict("list")
        pictures = captions.iloc[caption_at[shown]]
        neutral = Neutral(bare)
        packed = packer.pack(
            zip(pair_query.tolist(), pair_item.tolist(), strict=True),
            [neutral[text] for text in chunk_queries["query"]],
            (
                item_sections(dict(zip(_ITEM_FIELDS, row, strict=True)), picture, neutral)
                for *row, picture in zip(*chunk_items.values(), pictures, strict=True)
            ),
            [
                [text for rule in (rules or {}).get(key, ()) if (text := neutral[rule])]
                for key in chunk_queries["query_id"]
            ],
        )
        yield part.assign(
            intent=chunk_queries["intent"].to_numpy()[pair_query],
            industry=items["industry"].iloc[shown].to_numpy()[pair_item],
            prompt=[prompt for prompt, _ in packed],
            dropped=[json.dumps(dropped) if dropped else "{}" for _, dropped in packed],
        )[PROMPT_COLUMNS]


def count_dropped(prompts: pd.DataFrame) -> pd.DataFrame:
    """What the budget left out, by section: ``values`` dropped, and ``pairs`` that lost some."""
    lost = pd.DataFrame([json.loads(text) for text in prompts["dropped"] if text != "{}"])
    return pd.DataFrame({"values": lost.sum().astype(int), "pairs": lost.notna().sum()}).sort_index()


def _positions(pairs: pd.DataFrame, key: str, known: pd.Series) -> NDArray[np.intp]:
    """Where each pair's key stands in a table; the pairs whose key does not are counted in an error."""
    index = pd.Index(known)
    if not index.is_unique:
        twice = known[known.duplicated()]
        raise DataError(f"{len(twice)} repeated {key}, first {twice.iloc[0]!r}; keep one row of each")
    at: NDArray[np.intp] = index.get_indexer(pd.Index(pairs[key]))
    if (at < 0).any():
        lost = pairs[at < 0]
        raise DataError(
            f"{len(lost)} pairs name an unknown {key}; first: pair {lost.pair_id.iloc[0]!r} -> "
            f"{lost[key].iloc[0]!r}"
        )
    return at


def _captioned(items: pd.Series, captions: pd.Series) -> NDArray[np.intp]:
    """Where each item's caption stands."""
    at: NDArray[np.intp] = captions.index.get_indexer(pd.Index(items))
    if (at < 0).any():
        lost = items[at < 0]
        raise DataError(
            f"{len(lost)} items have no caption entry; first: {lost.iloc[0]!r}. Make the captions with "
            "caption_items from the same items"
        )
    return at
