"""The synthetic world: queries, items to order, clicks and gold labels, all from one seed.

Gold labels come from the rule engine over an item's *true* attributes, which its text only partly tells:
titles and CPV may omit or misstate the colour (the picture shows it), queries use slang that only selling
points explain, and some items sit just on one side of a rule's threshold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lore_lib.rng import generator
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.picture import render_picture
from lore_lib.vertical.rules import NOT_STATED, PURE_COTTON, Judgement, judge, verdict
from lore_lib.vertical.schema import Demand, dump_demands

EXTRA_DIMENSIONS: dict[str, float] = {
    "color": 0.30, "material": 0.20, "audience": 0.18, "price": 0.12, "brand": 0.10, "style": 0.10,
}  # fmt: skip
"""Share of each dimension among the demands a query makes beside its category."""

NEGATED_SHARE = 0.08
SLANG_SHARE = 0.30
QUESTION_SHARE = 0.06
SHOPS = ("citymall", "homebay", "trendbox", "outletone")
SIZES = {"shoes": "narrow wide", "bags": "one size", "bedding": "single double", "living": "small large"}
HYPE = ("new", "hot", "classic", "premium", "soft", "daily")


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

    @property
    def stated(self) -> dict[str, str]:
        """Attributes as the text states them (no picture)."""
        said = {key: value for key, value in self.truth.items() if key in ("category", "price")}
        for key in ("brand", "audience", "style", "color"):
            if key in self.cpv:
                said[key] = self.cpv[key]
        material = self.cpv.get("material", "")
        if material:
            name, _, share = material.partition(" ")
            said |= {"material": name} | ({"material_share": share} if share else {})
        return said


@dataclass
class World:
    """A generator of queries and items for one vertical."""

    vertical: Vertical
    _candidates: dict[tuple[str, str, int], list[dict[str, str]]] = field(default_factory=dict)
    _values: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def draw_query(self, rng: np.random.Generator, extra: int | None = None, slang: bool = True) -> Query:
        """Draw a query.

        Args:
            rng: source of randomness.
            extra: number of demands beside the category, 1-3; drawn when None.
            slang: whether surfaces from the lexicon may appear.
        """
        count = int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25])) if extra is None else extra
        names = list(EXTRA_DIMENSIONS)
        chosen = rng.choice(names, size=count, replace=False, p=list(EXTRA_DIMENSIONS.values()))
        demands = [self.draw_demand(dimension, rng, slang) for dimension in ("category", *map(str, chosen))]
        question = bool(rng.random() < QUESTION_SHARE)
        return Query(_query_text(demands, question, rng), self._intent(demands, question), tuple(demands))

    def draw_demand(self, dimension: str, rng: np.random.Generator, slang: bool = True) -> Demand:
        """Draw one demand of a dimension: a plain value, a nickname of the lexicon, or a negation."""
        if dimension in ("color", "material", "brand") and rng.random() < NEGATED_SHARE:
            values = list(self.vertical.colors) if dimension == "color" else self.vertical.values(dimension)
            value = str(rng.choice([v for v in values if v not in ("cotton", PURE_COTTON)]))
            return Demand(dimension, value, f"{value} dupe" if dimension == "brand" else f"not {value}", True)
        nicknames = [s for s, entry in self.vertical.lexicon.items() if dimension in entry.means]
        if slang and nicknames and rng.random() < SLANG_SHARE:
            surface = str(rng.choice(nicknames))
            return Demand(dimension, self.vertical.lexicon[surface].means[dimension], surface)
        values = self.vertical.values(dimension)
        weights = np.array([4.0 if v == PURE_COTTON else 1.0 for v in values])
        value = str(rng.choice(values, p=weights / weights.sum()))
        return Demand(dimension, value, value)

    def _intent(self, demands: list[Demand], question: bool) -> str:
        if any(d.negated for d in demands):
            return "ER" if any(d.negated and d.dimension == "brand" for d in demands) else "NC"
        slang = [
            self.vertical.lexicon[d.surface].intent for d in demands if d.surface in self.vertical.lexicon
        ]
        if slang:
            return "SS" if "SS" in slang else "DJ"
        return "QA" if question else "MA" if len(demands) >= 4 else "plain"

    def draw_item(self, query: Query, level: int, rng: np.random.Generator) -> Item:
        """Draw an item whose gold label for ``query`` is ``L<level>`` where the vocabulary allows it."""
        levels = {d.dimension: 4 for d in query.demands}
        if level == 1:
            levels = {d.dimension: int(rng.choice([2, 3, 4])) for d in query.demands} | {"category": 1}
        elif level < 4:
            able = [d.dimension for d in query.demands if self.options(d, level)]
            levels |= {d.dimension: 3 for d in query.demands if rng.random() < 0.15 and self.options(d, 3)}
            if able:
                levels[str(rng.choice(able))] = level
        truth = self._background(rng)
        for demand in query.demands:
            options = self.options(demand, levels[demand.dimension]) or self.options(demand, 4)
            values = options[int(rng.integers(len(options)))]
            truth = {k: v for k, v in truth.items() if k.partition("_")[0] != demand.dimension} | values
        truth = {key: value for key, value in truth.items() if value != NOT_STATED}
        return self._describe(truth, rng)

    def options(self, demand: Demand, level: int) -> list[dict[str, str]]:
        """Attribute values of one dimension that reach exactly ``level`` for this demand."""
        key = (demand.dimension, f"{demand.value}/{demand.negated}", level)
        if key not in self._candidates:
            every = self._attribute_values(demand.dimension)
            self._candidates[key] = [
                values
                for values in every
                if verdict(self.vertical, demand, {k: v for k, v in values.items() if v != NOT_STATED}).level
                == level
                and not (demand.dimension == "price" and not _near_limit(values["price"], demand.value))
            ]
        return self._candidates[key]

    def _attribute_values(self, dimension: str) -> list[dict[str, str]]:
        """Every value an item may have in one dimension (``NOT_STATED`` included where it may be missing)."""
        if dimension not in self._values:
            self._values[dimension] = self._all_values(dimension)
        return self._values[dimension]

    def _all_values(self, dimension: str) -> list[dict[str, str]]:
        v = self.vertical
        if dimension == "material":
            kinds = [{"material": m} for m in v.materials if m != "cotton"]
            return kinds + [{"material": "cotton", "material_share": str(s)} for s in v.cotton_shares]
        table: dict[str, list[str]] = {
            "category": list(v.group_of),
            "color": list(v.shades),
            "audience": list(v.audiences),
            "brand": [*v.brands, NOT_STATED],
            "style": [*v.styles, NOT_STATED],
            "price": [str(p) for p in range(12, 181)],
        }
        return [{dimension: value} for value in table[dimension]]

    def _background(self, rng: np.random.Generator) -> dict[str, str]:
        attributes: dict[str, str] = {}
        for dimension in ("category", "color", "material", "audience", "brand", "style", "price"):
            options = self._attribute_values(dimension)
            attributes |= options[int(rng.integers(len(options)))]
        return attributes

    def _describe(self, truth: dict[str, str], rng: np.random.Generator) -> Item:
        v = self.vertical
        cpv: dict[str, str] = {key: truth[key] for key in ("brand", "audience", "style") if key in truth}
        cpv["material"] = truth["material"] + (
            f" {truth['material_share']}" if "material_share" in truth else ""
        )
        draw = rng.random()
        if draw < 0.10:
            cpv["color"] = str(rng.choice([s for s in v.shades if s != truth["color"]]))
        elif draw > 0.40:
            cpv["color"] = truth["color"]
        words = [truth.get("brand", ""), str(rng.choice(HYPE))]
        words += [cpv.get("color", "")] if rng.random() < 0.4 else []
        title = " ".join(word for word in (*words, truth["category"]) if word)
        nicknames = [s for s, e in v.lexicon.items() if all(truth.get(d) == x for d, x in e.means.items())]
        told = [s for s in nicknames if rng.random() < 0.7]
        points = "; ".join(f"{s} ({next(iter(v.lexicon[s].means.values()))})" for s in told)
        shop = (
            f"{truth['brand']} official"
            if "brand" in truth and rng.random() < 0.3
            else str(rng.choice(SHOPS))
        )
        sizes = SIZES.get(v.group_of[truth["category"]], "S M L")
        return Item(truth, title, cpv, sizes, shop, points)


def _near_limit(price: str, limit: str) -> bool:
    """Keep prices within a factor of about two of the limit, so that thresholds matter."""
    return 0.5 * float(limit) <= float(price) <= 1.7 * float(limit)


def _query_text(demands: list[Demand], question: bool, rng: np.random.Generator) -> str:
    surface = {d.dimension: d.surface for d in demands}
    if "audience" in surface:
        surface["audience"] = f"for {surface['audience']}"
    if "price" in surface:
        surface["price"] = f"under {surface['price']}"
    front = [surface[d] for d in ("style", "color", "material", "brand") if d in surface]
    if rng.random() < 0.5:
        front.reverse()
    back = [surface[d] for d in ("audience", "price") if d in surface]
    text = " ".join([*front, surface["category"], *back])
    return f"is there a {text} ?" if question else text


def pair_kind(vertical: Vertical, query: Query, item: Item, gold: Judgement) -> str:
    """What the pair cannot be judged without: the first evidence whose removal alone flips the label.

    Order: the picture (``visual``), the lexicon (``knowledge``), the industry rules (``boundary``), else
    ``plain``.
    """
    seen = {key: value for key, value in item.truth.items() if key != "color"}
    text_only = seen | ({"color": item.stated["color"]} if "color" in item.stated else {})
    if judge(vertical, query.demands, text_only).label != gold.label:
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

    Returns:
        Frames with the columns of ``data/README.md``.
    """
    world = World(vertical)
    rows: dict[str, list[dict[str, Any]]] = {"items": [], "queries": [], "pairs": [], "clicks": []}
    for split, count in queries_per_split.items():
        rng = generator(seed, "world", vertical.name, split)
        for index, query in enumerate(_distinct_queries(world, split, count, rng)):
            query_id = f"{split}-q{index:05d}"
            frequency = int(np.ceil(20_000 / (index + 3)))
            rows["queries"].append(
                {"query_id": query_id, "query": query.text, "intent": query.intent, "frequency": frequency,
                 "demands": dump_demands(query.demands), "split": split}
            )  # fmt: skip
            levels = [*(1 + (index + np.arange(pairs_per_query)) % 4), *[4] * clicked_per_query]
            for position, level in enumerate(levels):
                item = world.draw_item(query, int(level), rng)
                item_id = f"{split}-i{index:05d}-{position}"
                gold = judge(vertical, query.demands, item.truth)
                rows["items"].append(_item_row(vertical, item_id, item))
                if position < pairs_per_query:
                    rows["pairs"].append(
                        {
                            "pair_id": f"{split}-p{index:05d}-{position}",
                            "query_id": query_id,
                            "item_id": item_id,
                            "label": gold.label,
                            "mismatch": gold.mismatch,
                            "path": json.dumps([vars(s) for s in gold.path]),
                            "kind": pair_kind(vertical, query, item, gold),
                            "split": split,
                        }
                    )
                attraction = {"L4": 12.0, "L3": 4.0, "L2": 0.5, "L1": 0.05}[gold.label]
                clicks = int(rng.poisson(attraction))
                if clicks:
                    rows["clicks"].append({"query_id": query_id, "item_id": item_id, "clicks": clicks})
    return {name: pd.DataFrame(table) for name, table in rows.items()}


def _distinct_queries(world: World, split: str, count: int, rng: np.random.Generator) -> Iterator[Query]:
    seen: set[str] = set()
    while len(seen) < count:
        query = world.draw_query(rng)
        if query.split == split and query.text not in seen:
            seen.add(query.text)
            yield query


def _item_row(vertical: Vertical, item_id: str, item: Item) -> dict[str, Any]:
    group = vertical.group_of[item.truth["category"]]
    return {
        "item_id": item_id,
        "title": item.title,
        "cpv": json.dumps(item.cpv),
        "skus": json.dumps(item.skus.split()),
        "shop": item.shop,
        "price": float(item.truth["price"]),
        "selling_points": item.selling_points,
        "industry": vertical.industry_of[item.truth["category"]],
        "truth": json.dumps(item.truth),
        "picture": render_picture(vertical.shades[item.truth["color"]], group),
    }
