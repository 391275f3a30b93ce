"""The rule engine: one demand against one item gives a verdict; the lowest verdict gives the label.

Levels follow the rule sets of the RAIR benchmark (paraphrased in our own words): 4 meets the demand, 3 is
near or not stated, 2 contradicts it, 1 is an unrelated category. Thresholds come from the vertical's YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lore_lib.errors import DataError
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.schema import DIMENSIONS, Attributes, Demand, Verdict

NOT_STATED = "none"
PURE_COTTON = "pure cotton"


@dataclass(frozen=True)
class Judgement:
    """The outcome of path following.

    Attributes:
        label: "L1".."L4".
        mismatch: for L2 the dimension that failed (first in the order of ``DIMENSIONS``), else "".
        path: one verdict per demand, in the order of ``DIMENSIONS``.
    """

    label: str
    mismatch: str
    path: tuple[Verdict, ...]


def judge(
    vertical: Vertical, demands: Iterable[Demand], item: Attributes, industry_rules: bool = True
) -> Judgement:
    """Judge an item against all demands of a query.

    The result does not depend on the order of ``demands``.

    Args:
        vertical: vocabularies and thresholds.
        demands: at least one demand.
        item: known attributes, dimension -> value; missing means not stated.
        industry_rules: False judges by everyday sense alone: what the vertical's rules call near is then
            taken for a match (a shade of the same family, a near category, "cotton 80" for pure cotton) or
            for a conflict (kin material, sub-brand, neighbouring age, a price just over the limit).

    Raises:
        DataError: no demand at all, or a dimension that has no rule.
    """
    order = list(DIMENSIONS)
    path = tuple(
        verdict(vertical, demand, item, industry_rules)
        for demand in sorted(demands, key=lambda d: (order.index(d.dimension), d))
    )
    if not path:
        raise DataError("a query without demands cannot be judged; give it at least a category demand")
    level = min(step.level for step in path)
    mismatch = next((step.dimension for step in path if step.level == 2), "") if level == 2 else ""
    return Judgement(f"L{level}", mismatch, path)


def verdict(vertical: Vertical, demand: Demand, item: Attributes, industry_rules: bool = True) -> Verdict:
    """Judge one demand; a negated demand conflicts exactly where the plain one would be met."""
    rule = _RULES.get(demand.dimension)
    if rule is None:
        raise DataError(f"no rule for dimension {demand.dimension!r}; rules exist for {', '.join(_RULES)}")
    found = item.get(demand.dimension, NOT_STATED)
    level = rule(vertical, demand.value, item)
    if not industry_rules:
        level = _everyday(demand, level, item)
    if demand.negated:
        return Verdict(demand.dimension, f"not {demand.value}", found, 2 if level == 4 else 4)
    return Verdict(demand.dimension, demand.value, _shown(demand, item, found), level)


def _shown(demand: Demand, item: Attributes, found: str) -> str:
    share = item.get("material_share")
    return f"{found} {share}" if demand.dimension == "material" and found == "cotton" and share else found


def _everyday(demand: Demand, level: int, item: Attributes) -> int:
    if demand.value == PURE_COTTON and item.get("material") == "cotton":
        return 4
    if level != 3 or demand.dimension not in item:
        return level
    return 4 if demand.dimension in ("color", "category") else 2


def _category(vertical: Vertical, want: str, item: Attributes) -> int:
    have = item.get("category", NOT_STATED)
    if have == want:
        return 4
    if (want, have) in vertical.near_categories or (have, want) in vertical.near_categories:
        return 3
    return 2 if vertical.group_of.get(have) == vertical.group_of.get(want) else 1


def _color(vertical: Vertical, want: str, item: Attributes) -> int:
    have = item.get("color", NOT_STATED)
    if have == NOT_STATED:
        return 3
    if want in (have, vertical.family_of.get(have)):
        return 4
    return 3 if vertical.family_of.get(have) == vertical.family_of.get(want) else 2


def _material(vertical: Vertical, want: str, item: Attributes) -> int:
    have = item.get("material", NOT_STATED)
    share = int(item.get("material_share", "100"))
    if have == NOT_STATED:
        return 3
    if want == PURE_COTTON:
        pure = vertical.pure_share
        return 2 if have != "cotton" or share < pure.near else 4 if share >= pure.full else 3
    if want == "cotton" == have:
        return 4 if share >= vertical.blend_share else 2
    return 4 if have == want else 3 if vertical.materials.get(want) == have else 2


def _brand(vertical: Vertical, want: str, item: Attributes) -> int:
    have = item.get("brand", NOT_STATED)
    if have == want:
        return 4
    return 3 if have == NOT_STATED or vertical.brands.get(have) == want else 2


def _audience(vertical: Vertical, want: str, item: Attributes) -> int:
    have = item.get("audience", NOT_STATED)
    if have == want or (have == "unisex" and want in vertical.unisex_fits):
        return 4
    return 3 if have == NOT_STATED or have in vertical.audiences.get(want, []) else 2


def _style(vertical: Vertical, want: str, item: Attributes) -> int:
    have = item.get("style", NOT_STATED)
    return 4 if have == want else 3 if have == NOT_STATED else 2


def _price(vertical: Vertical, want: str, item: Attributes) -> int:
    if "price" not in item:
        return 3
    limit, price = float(want), float(item["price"])
    return 4 if price <= limit else 3 if price <= limit * (1 + vertical.price_tolerance) else 2


_RULES: dict[str, Callable[[Vertical, str, Attributes], int]] = {
    "category": _category,
    "brand": _brand,
    "audience": _audience,
    "price": _price,
    "material": _material,
    "color": _color,
    "style": _style,
}
