"""The synthetic world: queries, items to order, clicks and gold labels, all from one seed.

Gold labels come from the rule engine over an item's *true* attributes, which its text only partly tells:
titles and CPV may omit or misstate the colour and never tell the pattern (the picture shows both), queries
use slang that only selling points explain, and some items sit just on one side of a rule's threshold.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from lore_lib.errors import DataError
from lore_lib.rng import generator
from lore_lib.vertical.definition import COLOR, Vertical, WorldSpec
from lore_lib.vertical.kinds import JOIN, NOT_STATED, Limit
from lore_lib.vertical.picture import STRUCTURES, render_picture
from lore_lib.vertical.rules import Judgement, judge, share_key, verdict
from lore_lib.vertical.schema import Demand, dump_demands

Value = TypeVar("Value")

OMITTED, MISSTATED = 0.30, 0.10
"""Shares of items whose CPV leaves the color out, and states a wrong one."""

ATTRACTION = {"L4": 12.0, "L3": 4.0, "L2": 0.5, "L1": 0.05}
"""Mean number of clicks on an item of each label."""

VAIN_DRAWS = 10_000
"""Queries drawn in a row without a new one, after which a split counts as exhausted."""


@dataclass(frozen=True)
class Query:
    """A query with its meaning."""

    text: str
    intent: str
    demands: tuple[Demand, ...]

    @property
    def split(self) -> str:
        """train, dev or test: by a hash of the meaning, so that a paraphrase never changes sides.

        Of 20 buckets two are test and one is dev.
        """
        meaning = "|".join(sorted(f"{d.dimension}={d.value}={d.negated}" for d in self.demands))
        bucket = int.from_bytes(hashlib.sha256(meaning.encode()).digest()[:4], "big") % 20
        return "test" if bucket < 2 else "dev" if bucket == 2 else "train"


@dataclass(frozen=True)
class Item:
    """An item: its true attributes and what its text says."""

    truth: dict[str, str]
    title: str
    cpv: dict[str, str]
    skus: str
    shop: str
    selling_points: str


class _Menu(NamedTuple):
    """What a query may say of one dimension, negations aside: plain values, their bounds, nicknames."""

    values: list[str]
    bounds: list[float]
    nicknames: list[str]


@dataclass
class World:
    """A generator of queries and items for one vertical.

    Raises:
        DataError: the vertical has no section ``world``.
    """

    vertical: Vertical
    _candidates: dict[tuple[tuple[Demand, ...], int], list[dict[str, str]]] = field(default_factory=dict)
    _values: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    _menus: dict[tuple[str, frozenset[str] | None], _Menu] = field(default_factory=dict)
    _true_points: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vertical.world is None:
            raise DataError(f"vertical {self.vertical.name!r} has no section 'world' and no tables; give one")
        self.spec: WorldSpec = self.vertical.world
        self._asks = np.array(list(self.spec.asks)), np.array(list(self.spec.asks.values()))
        self._groups = frozenset(self.vertical.taxonomy.groups)
        restricted: dict[str, Iterable[str]] = {**self.spec.only, **self.spec.fits}
        self._only = {name: frozenset(groups) for name, groups in restricted.items()}
        self._points = [
            (dimension, frozenset(value.split(JOIN)), f"{surface} ({value})")
            for surface, entry in self.vertical.lexicon.items()
            for dimension, value in entry.means.items()
        ]

    def draw_query(self, rng: np.random.Generator, extra: int | None = None, slang: bool = True) -> Query:
        """Draw a query.

        Args:
            rng: source of randomness.
            extra: number of dimensions beside the category, at most those of ``asks``; 1-3 when None.
                Dimensions that no category has together are left out.
            slang: whether surfaces from the lexicon may appear.
        """
        count = 1 + bisect(_DEMAND_BOUNDS, rng.random()) if extra is None else extra
        asked, shares = self._asks
        groups = self._groups
        chosen = []
        for name in rng.choice(asked, size=count, replace=False, p=shares).tolist():
            if fitting := groups & self._only.get(name, groups):
                groups = fitting
                chosen.append(name)
        demands = [*self.draw_demands("category", rng, slang, groups)]
        group = frozenset({self.vertical.group_of[demands[0].value]})
        for name in chosen:
            demands += self.draw_demands(name, rng, slang, group if name in self.spec.fits else None)
        question = bool(rng.random() < self.spec.question_share)
        return Query(self._text(demands, question, rng), self._intent(demands, question), tuple(demands))

    def draw_demands(
        self,
        dimension: str,
        rng: np.random.Generator,
        slang: bool = True,
        groups: frozenset[str] | None = None,
    ) -> tuple[Demand, ...]:
        """Draw what a query says of one dimension: a plain value, a negation, or slang, which may be worth
        several demands.

        Args:
            dimension: one that the vertical has.
            rng: source of randomness.
            slang: whether surfaces from the lexicon may appear.
            groups: draw only what these groups of categories may have (categories, values of ``world.fits``);
                None for all.
        """
        spec = self.spec
        if dimension in spec.negations and rng.random() < spec.negated_share:
            value = _pick(self.vertical.dimensions[dimension].negatable(), rng)
            return (Demand(dimension, value, spec.negations[dimension].replace("{}", value), True),)
        menu = self._menu(dimension, groups)
        if slang and menu.nicknames and rng.random() < spec.slang_share:
            surface = _pick(menu.nicknames, rng)
            return self.vertical.lexicon[surface].demands(surface)
        value = menu.values[bisect(menu.bounds, rng.random())]
        return (Demand(dimension, value, value),)

    def _menu(self, dimension: str, groups: frozenset[str] | None) -> _Menu:
        if (dimension, groups) not in self._menus:
            kind, emphasis = self.vertical.dimensions[dimension], self.spec.weights.get(dimension, {})
            within = (
                self.vertical.taxonomy.groups
                if dimension == "category"
                else self.spec.fits.get(dimension, {})
            )
            fitting = None if groups is None else {v for group in groups for v in within.get(group, ())}
            values = [v for v in kind.demands() if fitting is None or v in fitting]
            nicknames = [
                s
                for s, entry in self.vertical.lexicon.items()
                if dimension in entry.means and (fitting is None or entry.means[dimension] in values)
            ]
            bounds = _bounds([emphasis.get(v, 1.0) for v in values])
            self._menus[dimension, groups] = _Menu(values, bounds, nicknames)
        return self._menus[dimension, groups]

    def _intent(self, demands: list[Demand], question: bool) -> str:
        if any(d.negated for d in demands):
            return "ER" if any(d.negated and d.dimension == "brand" for d in demands) else "NC"
        slang = [
            self.vertical.lexicon[d.surface].intent for d in demands if d.surface in self.vertical.lexicon
        ]
        if slang:
            return "SS" if "SS" in slang else "DJ"
        return "QA" if question else "MA" if len(demands) >= 4 else "plain"

    def _text(self, demands: list[Demand], question: bool, rng: np.random.Generator) -> str:
        surface = {d.dimension: d.surface for d in demands}
        front = [surface[name] for name in self.spec.front if name in surface]
        if rng.random() < 0.5:
            front.reverse()
        back = [said.replace("{}", surface[name]) for name, said in self.spec.back.items() if name in surface]
        text = " ".join([*front, surface["category"], *back])
        return f"is there a {text} ?" if question else text

    def draw_item(self, query: Query, level: int, rng: np.random.Generator) -> Item:
        """Draw an item whose gold label for ``query`` is ``L<level>`` where the vocabulary allows it."""
        demands: dict[str, tuple[Demand, ...]] = {}
        for demand in query.demands:
            demands[demand.dimension] = (*demands.get(demand.dimension, ()), demand)
        levels = dict.fromkeys(demands, 4)
        if level == 1:
            levels = {name: int(rng.choice([2, 3, 4])) for name in demands} | {"category": 1}
            fatal = [name for name, asked in demands.items() if name != "category" and self.options(asked, 1)]
            if (
                fatal and rng.random() < 0.5
            ):  # the right category, and yet unrelated: a part that fits nothing
                levels |= {"category": 4, _pick(fatal, rng): 1}
        elif level < 4:
            able = [name for name, asked in demands.items() if self.options(asked, level)]
            near = [n for n, asked in demands.items() if rng.random() < 0.15 and self.options(asked, 3)]
            levels |= dict.fromkeys(near, 3)
            if able:
                levels[str(rng.choice(able))] = level
        truth = self._background(rng)
        for name, asked in demands.items():
            options = self.options(asked, levels[name]) or self.options(asked, 4)
            if name in self.spec.fits:
                options = self._fitting(name, truth["category"], options) or options
            truth.pop(name, None)
            truth.pop(share_key(name), None)
            truth |= _pick(options, rng)
        group = self.vertical.group_of[truth["category"]]
        for name in self.spec.fits:
            if name not in demands or not self._fitting(name, truth["category"], [truth]):
                truth[name] = next(iter(self.spec.fits[name].get(group, ())), NOT_STATED)
        lacking = [
            n for n, only in self._only.items() if group not in only and n not in self.vertical.pictured
        ]
        truth = {k: v for k, v in truth.items() if v != NOT_STATED and k not in lacking}
        return self._describe(truth, rng)

    def _fitting(self, dimension: str, category: str, options: list[dict[str, str]]) -> list[dict[str, str]]:
        """The options of a dimension that items of the category may have, by ``world.fits``."""
        values = self.spec.fits[dimension].get(self.vertical.group_of[category], ())
        return [option for option in options if option[dimension] in (*values, NOT_STATED)]

    def options(self, demands: tuple[Demand, ...], level: int) -> list[dict[str, str]]:
        """Attribute values of one dimension whose lowest verdict over its demands is exactly ``level``."""
        if (demands, level) not in self._candidates:
            self._candidates[demands, level] = [
                values
                for values in self._attribute_values(demands[0].dimension)
                if min(verdict(self.vertical, demand, values).level for demand in demands) == level
                and self._telling(demands[0], values)
            ]
        return self._candidates[demands, level]

    def _telling(self, demand: Demand, values: dict[str, str]) -> bool:
        """Keep numbers within a factor of about two of their limit, so that thresholds matter."""
        if not isinstance(self.vertical.dimensions[demand.dimension], Limit):
            return True
        return 0.5 * float(demand.value) <= float(values[demand.dimension]) <= 1.7 * float(demand.value)

    def _attribute_values(self, dimension: str) -> list[dict[str, str]]:
        """Every value an item may have in one dimension (``NOT_STATED`` included where it may be missing)."""
        if dimension not in self._values:
            kind = self.vertical.dimensions[dimension]
            missing = [NOT_STATED] if dimension in self.spec.optional else []
            self._values[dimension] = [kind.attributes(dimension, text) for text in [*kind.found(), *missing]]
        return self._values[dimension]

    def _background(self, rng: np.random.Generator) -> dict[str, str]:
        attributes: dict[str, str] = {}
        for dimension in self.vertical.dimensions:
            attributes |= _pick(self._attribute_values(dimension), rng)
        return attributes

    def _describe(self, truth: dict[str, str], rng: np.random.Generator) -> Item:
        shades, spec = self.vertical.shades, self.spec
        cpv = {
            name: f"{truth[name]} {truth[share_key(name)]}" if share_key(name) in truth else truth[name]
            for name in spec.cpv
            if name in truth
        }
        draw = rng.random()
        if draw < MISSTATED:
            cpv[COLOR] = _pick([s for s in shades if s != truth[COLOR]], rng)
        elif draw > MISSTATED + OMITTED:
            cpv[COLOR] = truth[COLOR]
        words = [truth.get("brand", ""), _pick(spec.hype, rng)]
        words += [cpv.get(COLOR, "")] if rng.random() < 0.4 else []
        title = " ".join(word for word in (*words, truth["category"]) if word)
        true = sorted(at for stated in truth.items() for at in self._points_of(stated))
        points = "; ".join(self._points[at][2] for at in true if rng.random() < 0.7)
        official = "brand" in truth and rng.random() < 0.3
        shop = f"{truth['brand']} official" if official else _pick(spec.shops, rng)
        shop = truth.get("store", shop)
        group = self.vertical.group_of[truth["category"]]
        return Item(truth, title, cpv, spec.variants.get(group, spec.variants.get("", "")), shop, points)

    def _points_of(self, stated: tuple[str, str]) -> list[int]:
        """Positions in the lexicon of the nicknames that are true of a dimension's value."""
        if stated not in self._true_points:
            held = set(stated[1].split(JOIN))
            self._true_points[stated] = [
                at
                for at, (name, values, _) in enumerate(self._points)
                if name == stated[0] and values <= held
            ]
        return self._true_points[stated]


def _pick(options: Sequence[Value], rng: np.random.Generator) -> Value:
    """One of them, as likely as any other; draws what ``rng.choice`` would."""
    return options[int(rng.integers(len(options)))]


def _bounds(weights: Iterable[float]) -> list[float]:
    """Upper ends of adjoining shares of [0, 1): ``bisect(bounds, rng.random())`` draws an index by weight.

    They are computed as ``rng.choice`` does, so the same index is drawn.
    """
    shares = np.array([*weights])
    ends = (shares / shares.sum()).cumsum()
    bounds: list[float] = (ends / ends[-1]).tolist()
    return bounds


_DEMAND_BOUNDS = _bounds([0.30, 0.45, 0.25])
"""Of one, two and three demands beside the category."""


def pair_kind(vertical: Vertical, query: Query, item: Item, gold: Judgement) -> str:
    """What the pair cannot be judged without: the first evidence whose removal alone flips the label.

    Order: the picture (``visual``), the lexicon (``knowledge``), the industry rules (``boundary``), else
    ``plain``.
    """
    pictured = vertical.pictured
    read = {key: value for key, value in item.truth.items() if key not in pictured}
    stated = {key: item.cpv[key] for key in pictured if key in item.cpv}
    if judge(vertical, query.demands, read | stated).label != gold.label:
        return "visual"
    known = [d for d in query.demands if d.surface not in vertical.lexicon]
    if not known or judge(vertical, known, item.truth).label != gold.label:
        return "knowledge"
    return "boundary" if judge(vertical, query.demands, item.truth, False).label != gold.label else "plain"


def generate_tables(
    vertical: Vertical,
    queries_per_split: dict[str, int],
    pairs_per_query: int,
    clicked_per_query: int,
    seed: int,
    label_noise: float = 0.0,
) -> dict[str, pd.DataFrame]:
    """Make the tables ``items``, ``queries``, ``pairs`` and ``clicks``.

    No query meaning and no item stands in two splits. Labels are balanced by design: each query's items are
    drawn for levels that rotate over L1..L4.

    Args:
        vertical: the vertical.
        queries_per_split: e.g. ``{"train": 900, "dev": 60, "test": 130}``.
        pairs_per_query: judged items per query.
        clicked_per_query: further fully matching items per query that only the click log knows.
        seed: root seed.
        label_noise: share of the train pairs, 0 to 1, whose label :func:`misjudge` replaces; nothing else
            changes, and what a smaller share replaces, a larger one replaces by the same label.

    Returns:
        Frames with the columns of ``data/README.md``.

    Raises:
        DataError: the vertical has no section ``world``, or not as many different queries.
    """
    tables: dict[str, list[dict[str, Any]]] = {"items": [], "queries": [], "pairs": [], "clicks": []}
    rows = world_rows(vertical, queries_per_split, pairs_per_query, clicked_per_query, seed, label_noise)
    for name, row in rows:
        tables[name].append(row)
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def world_rows(
    vertical: Vertical,
    queries_per_split: dict[str, int],
    pairs_per_query: int,
    clicked_per_query: int,
    seed: int,
    label_noise: float = 0.0,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of :func:`generate_tables` one by one, each with the name of its table.

    Of what was made, only the texts of a split's queries are kept in memory (against repetition).
    """
    world, noise = World(vertical), generator(seed, "label noise", vertical.name)
    for split, count in queries_per_split.items():
        rng = generator(seed, "world", vertical.name, split)
        for index, query in enumerate(_distinct_queries(world, split, count, rng)):
            query_id = f"{split}-q{index:05d}"
            frequency = math.ceil(20_000 / (index + 3))
            yield "queries", {
                "query_id": query_id, "query": query.text, "intent": query.intent, "frequency": frequency,
                "demands": dump_demands(query.demands), "split": split,
            }  # fmt: skip
            levels = [1 + (index + n) % 4 for n in range(pairs_per_query)] + [4] * clicked_per_query
            for position, level in enumerate(levels):
                item = world.draw_item(query, level, rng)
                item_id = f"{split}-i{index:05d}-{position}"
                gold = judge(vertical, query.demands, item.truth)
                yield "items", _item_row(world, item_id, item)
                if position < pairs_per_query:
                    label, mismatch = gold.label, gold.mismatch
                    if split == "train":
                        chance, lean = noise.random(2)
                        if chance < label_noise:
                            label, mismatch = misjudge(gold, lean)
                    yield "pairs", {
                        "pair_id": f"{split}-p{index:05d}-{position}",
                        "query_id": query_id, "item_id": item_id,
                        "label": label, "mismatch": mismatch,
                        "path": json.dumps([vars(step) for step in gold.path]),
                        "kind": pair_kind(vertical, query, item, gold), "split": split,
                    }  # fmt: skip
                clicks = int(rng.poisson(ATTRACTION[gold.label]))
                if clicks:
                    yield "clicks", {"query_id": query_id, "item_id": item_id, "clicks": clicks}


def _distinct_queries(world: World, split: str, count: int, rng: np.random.Generator) -> Iterator[Query]:
    seen: set[str] = set()
    vain = 0
    while len(seen) < count:
        query = world.draw_query(rng)
        if query.split == split and query.text not in seen:
            vain = 0
            seen.add(query.text)
            yield query
        elif (vain := vain + 1) == VAIN_DRAWS:
            said = f"{world.vertical.name!r} ran out of {split} queries: {len(seen)} of {count} found"
            raise DataError(f"vertical {said}; ask for fewer, or give it more values or dimensions")


def misjudge(gold: Judgement, lean: float) -> tuple[str, str]:
    """Label and mismatch by an annotator who is one level too strict or too lenient.

    A full match becomes L3 and an unrelated category L2. L3 becomes L2 or L4; L2 becomes L3 and, where the
    category failed, perhaps L1, which no other conflict is taken for. The mismatch of a new L2 is the
    dimension that decided the gold label.

    Args:
        gold: the judgement by the rules.
        lean: in [0, 1); where two levels are possible, less than a half is strict.
    """
    decided = min(gold.path, key=lambda step: step.level)
    lowest = 1 if decided.dimension == "category" else 2
    near = [level for level in (decided.level - 1, decided.level + 1) if lowest <= level <= 4]
    level = near[int(lean * len(near))]
    return f"L{level}", decided.dimension if level == 2 else ""


def item_texts(item: Item) -> dict[str, Any]:
    """What a seller tells of an item, as columns of the table ``items``."""
    return {
        "title": item.title,
        "cpv": json.dumps(item.cpv),
        "skus": json.dumps(item.skus.split()),
        "shop": item.shop,
        "price": float(item.truth["price"]),
        "selling_points": item.selling_points,
    }


def seen_on_picture(vertical: Vertical, truth: Mapping[str, str]) -> str:
    """What a faultless captioner says of an item: its value of each pictured dimension."""
    return ", ".join(truth[dimension] for dimension in vertical.pictured)


def _item_row(world: World, item_id: str, item: Item) -> dict[str, Any]:
    vertical, category = world.vertical, item.truth["category"]
    group = vertical.group_of[category]
    position = vertical.taxonomy.groups[group].index(category)
    patterns = (item.truth[dimension] for dimension in vertical.pictured if dimension != COLOR)
    picture = render_picture(
        vertical.shades[item.truth[COLOR]],
        world.spec.silhouettes[group],
        pattern=next(patterns, "plain"),
        structure=STRUCTURES[position % len(STRUCTURES)],
    )
    return {
        "item_id": item_id,
        **item_texts(item),
        "industry": vertical.industry_of[category],
        "truth": json.dumps(item.truth),
        "picture": picture,
    }
