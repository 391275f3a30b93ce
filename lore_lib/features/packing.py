"""Which values of an item go into a prompt of so many tokens: whole ones, those the query asks for first."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lore_lib.errors import DataError, nearest
from lore_lib.features.template import ITEM_SECTIONS, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Values = Mapping[str, str | Sequence[str]]
"""Section -> its values, neutralised; a plain text is one value."""

TokenCounter = Callable[[list[str]], list[int]]
"""Texts to the number of tokens of each."""

_PRIORITY = {name: rank for rank, name in enumerate(ITEM_SECTIONS)}
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_RUN = re.compile(rf"([{_CJK}]+)|[^\W_{_CJK}]+")


def token_counter(tokenizer: PreTrainedTokenizerBase | None) -> TokenCounter | None:
    """Count the tokens of texts, one batch a call; None without a tokenizer."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)

    def count(texts: list[str]) -> list[int]:
        if not texts:
            return []
        if backend is None:  # a tokenizer in Python
            batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
            return [len(ids) for ids in batch["input_ids"]]
        backend.no_padding()  # an earlier batch may have left either behind
        backend.no_truncation()
        return [len(text) for text in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return count


@functools.lru_cache(maxsize=4096)
def words(text: str) -> frozenset[str]:
    """The words of a text, without case; scripts that write no blanks count by pairs of characters.

    >>> sorted(words("Navy dress, EU_40")), sorted(words("红色连衣裙"))
    (['40', 'dress', 'eu', 'navy'], ['红色', '色连', '衣裙', '连衣'])
    """
    found: set[str] = set()
    for run in _RUN.finditer(text.casefold()):
        whole = run[1] is None or len(run[1]) == 1
        found.update([run[0]] if whole else (run[0][i : i + 2] for i in range(len(run[0]) - 1)))
    return frozenset(found)


class Packed(NamedTuple):
    """A prompt, and how many values of each section it left out for want of tokens."""

    prompt: str
    dropped: dict[str, int]


@dataclass
class _Item:
    """One item: its values in the order of the template, all of them as text, and the tokens of that text."""

    values: dict[str, Sequence[str]]
    text: str
    tokens: int

    @functools.cached_property
    def parts(self) -> list[tuple[str, str]]:
        return [(name, value) for name, values in self.values.items() for value in values]

    @functools.cached_property
    def _by_priority(self) -> list[int]:
        return sorted(range(len(self.parts)), key=lambda i: _PRIORITY[self.parts[i][0]])

    @functools.cached_property
    def _words(self) -> list[frozenset[str]]:
        return [words(value) for _, value in self.parts]

    def ranked(self, asked: frozenset[str]) -> list[int]:
        """Positions in ``parts``, the most wanted first.

        The title leads: without it nothing can be judged. Then every word asked for brings in one value that
        shows it, values with more such words first. The rest follows by the priority of its section. So a
        hundred variants that say "red" do not push out the one attribute that says "linen".
        """
        wanted = [i for i in self._by_priority if self.parts[i][0] == "title"]
        shared = [shown & asked for shown in self._words]
        covered: set[str] = set()
        for i in sorted(self._by_priority, key=lambda i: -len(shared[i])):  # stable: priority settles ties
            if self.parts[i][0] != "title" and not shared[i] <= covered:
                wanted.append(i)
                covered |= shared[i]
        taken = set(wanted)
        return wanted + [i for i in self._by_priority if i not in taken]


class Packer:
    """Writes the prompts of many pairs under one budget.

    Tokens are counted by value, with the blank before it and the join behind it. Byte-level BPE cuts at
    blanks and line breaks anyway, so the sum is the prompt's length or, by each section's last join, a little
    more.

    Args:
        template: the wording and the budgets.
        budget: key of the template's budgets.
        sections: keep only these of the budget's sections (an ablation); None keeps all.
        count: counts tokens; with None nothing is counted and every value stays.

    Raises:
        DataError: unknown budget.
    """

    def __init__(
        self,
        template: Template,
        budget: str,
        sections: Collection[str] | None = None,
        count: TokenCounter | None = None,
    ) -> None:
        limits = {str(name): limit for name, limit in template.budgets.items()}
        if budget not in limits:
            raise DataError(f"unknown budget {budget!r}; {nearest(budget, limits)}")
        chosen = set(limits[budget].sections) & set(ITEM_SECTIONS if sections is None else sections)
        self._template, self._budget, self._count = template, budget, count
        self._frame = functools.lru_cache(maxsize=1024)(template.frame)
        self._sections = [name for name in template.sections if name in chosen]
        self._style = {name: (s.head, s.join, s.join.rstrip(" ")) for name, s in template.sections.items()}
        self._opening: dict[str, int] = {}
        self._limit: float = math.inf
        if count is not None:
            breaks = dict.fromkeys(self._style, "\n") | {"query": "", "rules": template.separator}
            heads = [breaks[name] + head.rstrip(" ") for name, (head, _, _) in self._style.items()]
            *opening, before, behind = count([*heads, *template.frame()])
            self._opening = dict(zip(self._style, opening, strict=True))
            self._limit = limits[budget].tokens - before - behind

    def pack(
        self,
        pairs: Iterable[tuple[int, int]],
        queries: Sequence[str],
        items: Iterable[Values],
        rules: Sequence[Sequence[str]] | None = None,
    ) -> list[Packed]:
        """The prompt of every pair: linear in pairs, queries and items, with one call of the counter.

        Args:
            pairs: positions (query, item).
            queries: neutralised texts.
            items: the values of each.
            rules: those of each query, neutralised; they come in last.

        Raises:
            DataError: a query does not fit even without an item (counts them and quotes the first).
        """
        ruled = rules if rules is not None else [()] * len(queries)
        held = [
            {
                name: (value,) if isinstance(value, str) else value
                for name in self._sections
                if (value := item.get(name))
            }
            for item in items
        ]
        cost = self._costs(
            [{"query": [q], "rules": texts} for q, texts in zip(queries, ruled, strict=True)], held
        )
        rooms = [self._limit - self._tokens("query", [query], cost) for query in queries]
        self._check_rooms(queries, rooms)
        ends = [self._ends(query, texts) for query, texts in zip(queries, ruled, strict=True)]
        spare = [room - self._tokens("rules", texts, cost) for room, texts in zip(rooms, ruled, strict=True)]
        whole = [_Item(values, self._text(values), self._item_tokens(values, cost)) for values in held]
        packed = []
        for q, i in pairs:
            if whole[i].tokens <= spare[q]:
                packed.append(Packed(whole[i].text.join(ends[q]), {}))
            else:
                packed.append(self._squeeze(queries[q], whole[i], ruled[q], rooms[q], cost))
        return packed

    def _squeeze(
        self, query: str, item: _Item, rules: Sequence[str], room: float, cost: Mapping[str, int]
    ) -> Packed:
        parts = [*item.parts, *(("rules", text) for text in rules)]
        kept: set[int] = set()
        opened: set[str] = set()
        for i in (*item.ranked(words(query)), *range(len(item.parts), len(parts))):
            name, value = parts[i]
            tokens = cost[self._piece(name, value)] + (0 if name in opened else self._opening[name])
            if tokens <= room:
                room -= tokens
                kept.add(i)
                opened.add(name)
        values: dict[str, list[str]] = {}
        for i in sorted(kept):
            values.setdefault(parts[i][0], []).append(parts[i][1])
        ends = self._ends(query, values.pop("rules", []))
        dropped = Counter(name for i, (name, _) in enumerate(parts) if i not in kept)
        return Packed(self._text(values).join(ends), dict(dropped))

    def _piece(self, name: str, value: str) -> str:
        return f" {value}{self._style[name][2]}"

    def _costs(self, *groups: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, int]:
        """Tokens of every distinct value as it stands in its section."""
        if self._count is None:
            return {}
        pieces = {
            self._piece(name, value): 0
            for group in groups
            for sections in group
            for name, values in sections.items()
            for value in values
        }
        return dict(zip(pieces, self._count(list(pieces)), strict=True))

    def _tokens(self, name: str, values: Sequence[str], cost: Mapping[str, int]) -> int:
        if self._count is None or not values:
            return 0
        return self._opening[name] + sum([cost[self._piece(name, value)] for value in values])

    def _item_tokens(self, values: Mapping[str, Sequence[str]], cost: Mapping[str, int]) -> int:
        if self._count is None:
            return 0
        return sum([self._tokens(name, section, cost) for name, section in values.items()])

    def _join(self, name: str, values: Sequence[str]) -> str:
        head, join, _ = self._style[name]
        return head + join.join(values)

    def _text(self, values: Mapping[str, Sequence[str]]) -> str:
        return "".join([f"\n{self._join(name, section)}" for name, section in values.items()])

    def _ends(self, query: str, rules: Sequence[str]) -> tuple[str, str]:
        """What stands before and behind the item's lines."""
        before, behind = self._frame(self._join("rules", rules) if rules else "")
        return before + self._join("query", [query]), behind

    def _check_rooms(self, queries: Sequence[str], rooms: Sequence[float]) -> None:
        over = [q for q, room in enumerate(rooms) if room < 0]
        if over:
            limit = self._template.budgets[self._budget].tokens  # type: ignore[index]
            raise DataError(
                f"{len(over)} queries do not fit budget {self._budget!r} of template {self._template.name!r} "
                f"({limit} tokens) even without an item; first: {queries[over[0]]!r:.60} is "
                f"{-rooms[over[0]]:.0f} tokens too long. Take a larger budget, or shorten such queries"
            )
