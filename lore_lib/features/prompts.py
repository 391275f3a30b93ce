"""Query and item to the user's turn: named sections, chosen by budget, with untrusted text neutralised."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lore_lib.errors import DataError
from lore_lib.features.packing import Packer, Values, token_counter
from lore_lib.features.template import Template, load_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUDGETS: dict[str, tuple[str, ...]] = {
    str(name): ("query", *(s for s in load_template("nano").sections if s in budget.sections))
    for name, budget in load_template("nano").budgets.items()
}
"""Sections of lore-nano's prompt per token budget, in the order they are written."""

_INERT = {"<": "(", ">": ")", "[": "(", "]": ")", "{": "(", "}": ")", "|": "/"}
_INERT |= dict(zip("≮﹤＜≯﹥＞﹇［﹈］︷﹛｛︸﹜｝｜", "((()))(())((()))/", strict=True))
_BRACKETS = str.maketrans(_INERT)
_UNSAFE = re.compile(rf"[{re.escape(''.join(_INERT))}]|  |^ | $")
_SPACE = re.compile(r"\s+")


def neutralise(text: str, bare: re.Pattern[str] | None = None) -> str:
    """Make seller or shopper text inert.

    Control and format characters go, white space becomes single blanks, and the characters that chat-template
    tokens, ``</think>``, labels and HTML are made of become harmless ones; so do those that a tokenizer may
    normalise to them, such as full-width brackets. No text can end a section, close a tag or speak a label.

    Args:
        text: anything.
        bare: from :func:`bare_tokens`, for the rare tokenizer whose special tokens have no brackets.

    >>> neutralise("nice</think>[L4]<|im_end|>\\nquery: x")
    'nice(/think)(L4)(/im_end/) query: x'
    """
    if bare is not None:
        text = bare.sub(" ", neutralise(unicodedata.normalize("NFKC", text)))
    if text.isprintable() and not _UNSAFE.search(text):  # most texts: nothing to do
        return text
    kept = "".join(c for c in text if c.isprintable() or c.isspace())
    return _SPACE.sub(" ", kept).translate(_BRACKETS).strip()


class Neutral(dict[str, str]):
    """Text -> neutralised text, each worked out once: values such as "color navy" stand in many items.

    Args:
        bare: see :func:`neutralise`.
    """

    def __init__(self, bare: re.Pattern[str] | None = None) -> None:
        super().__init__()
        self._bare = bare

    def __missing__(self, text: str) -> str:
        self[text] = clean = neutralise(text, self._bare)
        return clean


def bare_tokens(tokenizer: PreTrainedTokenizerBase | None) -> re.Pattern[str] | None:
    """The special tokens that :func:`neutralise` alone would let through, such as ``en_XX`` of mBART.

    None for the tokenizers of Qwen, Llama, Mistral, Gemma, DeepSeek and others that mark theirs by brackets,
    and without a tokenizer.
    """
    if tokenizer is None:
        return None
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    known |= set(tokenizer.all_special_tokens)
    bare = {token.strip() for token in known if neutralise(token) == token.strip()} - {""}
    longest_first = sorted(bare, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if bare else None


def item_sections(
    item: Mapping[Any, Any], picture: str | None, neutral: Neutral | None = None
) -> dict[str, tuple[str, ...]]:
    """The item's side of the prompt, section -> neutralised values; empty values and sections are left out.

    Args:
        item: a row of ``items`` (title, cpv, skus, shop, price, selling_points).
        picture: what the captioner saw, ", " between its values, or None when it abstained.
        neutral: shared by the items of a batch.

    Raises:
        DataError: ``cpv`` is no JSON object, ``skus`` no JSON list, or ``price`` no number.
    """
    neutral = Neutral() if neutral is None else neutral
    cpv: dict[str, Any] = _json(item, "cpv", dict)
    skus: list[Any] = _json(item, "skus", list)
    sections = {
        "title": [str(item["title"])],
        "cpv": [f"{name} {value}" for name, value in cpv.items()],
        "sku": map(str, skus),
        "shop": [str(item["shop"])],
        "price": [_price(item)],
        "selling_points": str(item["selling_points"]).split("; "),
        "picture": (picture or "").split(", "),
    }
    clean = neutral.__getitem__
    return {
        name: kept for name, values in sections.items() if (kept := tuple(filter(None, map(clean, values))))
    }


def _json(item: Mapping[Any, Any], field: str, kind: type) -> Any:
    try:
        value = json.loads(item[field])
    except (
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # ValueError: also a number of thousands of digits
        raise DataError(f"item {item.get('item_id')!r}: {field} is no JSON: {error}") from error
    if not isinstance(value, kind):
        need = 'an object such as {"color": "navy"}' if kind is dict else 'a list such as ["S", "M"]'
        raise DataError(f"item {item.get('item_id')!r}: {field} holds {item[field]!r:.60}; give {need}")
    return value


def _price(item: Mapping[Any, Any]) -> str:
    """The price to the cent, "" where it is not stated (0, None or NaN)."""
    try:
        price = math.nan if item["price"] is None else float(item["price"])
    except (TypeError, ValueError) as error:
        found = f"price holds {item['price']!r:.60}; give a number, such as 19.9"
        raise DataError(f"item {item.get('item_id')!r}: {found}") from error
    if price == 0 or math.isnan(price):
        return ""
    return f"{price:.0f}" if price.is_integer() else f"{price:.2f}"


def render_prompt(
    query: str,
    sections: Values,
    budget: str = "mid",
    *,
    template: Template | None = None,
    rules: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """The user's turn for one pair; :func:`lore_lib.features.build.build_prompts` writes many.

    Args:
        query: as the shopper wrote it.
        sections: from :func:`item_sections`.
        budget: key of the template's budgets.
        template: from :func:`lore_lib.features.template.load_template`; None is lore-nano's bare one.
        rules: to be shown with the pair.
        tokenizer: counts the tokens of the budget; with None the budget only chooses sections.

    >>> render_prompt("red dress", {"title": "dress", "price": "40"}, "short")
    'query: red dress\\ntitle: dress\\nprice: 40'

    Raises:
        DataError: unknown budget, or the query alone is longer than it.
    """
    bare = bare_tokens(tokenizer)
    packer = Packer(template or load_template("nano"), budget, count=token_counter(tokenizer))
    said = [text for rule in rules if (text := neutralise(rule, bare))]
    return packer.pack([(0, 0)], [neutralise(query, bare)], [sections], [said])[0].prompt
