"""Of all rules, those that a query's demands touch, as short texts."""

from __future__ import annotations

from collections.abc import Iterable

from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.kinds import NOT_STATED
from lore_lib.vertical.rules import ANY, Rule
from lore_lib.vertical.schema import DIMENSIONS, WORDS, Demand


def touched_rules(vertical: Vertical, demands: Iterable[Demand]) -> list[Rule]:
    """The rules that can fire for these demands: those of the industry first, then the universal ones.

    A rule is touched when some value of the vertical stands to the value demanded in a relation that fires
    it. For a value that the vertical does not know, every relation of the dimension counts. A negated demand
    touches the rules of its plain one too, because it fails where that is met.
    """
    own = {rule.id for rule in vertical.rules}
    wanted = {(d.dimension, relation, d.negated) for d in demands for relation in _relations(vertical, d)}
    found = [rule for rule in vertical.rulebook.rules if _touched(rule, wanted)]
    order = [*DIMENSIONS, ANY]  # those for any dimension come last
    return sorted(found, key=lambda r: (r.id not in own, order.index(r.dimension)))


def _relations(vertical: Vertical, demand: Demand) -> set[str]:
    kind = vertical.dimensions[demand.dimension]
    if demand.value not in (*kind.demands(), *kind.negatable()):
        return kind.possible()
    return {kind.relation(demand.value, have).name for have in (*kind.found(), NOT_STATED)}


def _touched(rule: Rule, wanted: set[tuple[str, str, bool]]) -> bool:
    if rule.dimension == ANY:
        return any(negated for _, _, negated in wanted)
    return any(
        rule.dimension == dimension and relation in rule.when and (negated or not rule.negated)
        for dimension, relation, negated in wanted
    )


def rule_text(rule: Rule) -> str:
    """A rule in a line.

    >>> from lore_lib.vertical.rules import universal_rules
    >>> rule_text(next(rule for rule in universal_rules().rules if rule.id == "price.near"))
    'price: up to 10 % over the price: near'
    """
    dimension = "whatever the dimension" if rule.dimension == ANY else rule.dimension
    return f"{dimension}{', not wanted' if rule.negated else ''}: {rule.reason}: {WORDS[rule.level]}"
