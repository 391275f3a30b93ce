"""The rule engine: rules are rows of data; one demand against one item gives a verdict, the lowest the label.

A rule says at which level a relation between the value demanded and the value found is capped: 4 meets the
demand, 3 is near or not stated, 2 contradicts it, 1 is unrelated. ``data/rules/universal.yaml`` holds the
rules of all 18 dimensions, after the rule sets of the RAIR benchmark in our own words; a vertical adds rules
of its industry or replaces universal ones by their id.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel, model_validator

from lore_lib.artifacts import project_root
from lore_lib.errors import DataError, nearest
from lore_lib.vertical.checking import load
from lore_lib.vertical.kinds import NEGATED_RELATIONS, NOT_STATED, RELATIONS, Dimension, Relation
from lore_lib.vertical.schema import DIMENSIONS, Attributes, Demand, Verdict
from lore_lib.vertical.source import Contradictions, Problem

if TYPE_CHECKING:
    from lore_lib.vertical.definition import Vertical

ANY = "any"
"""The dimension of a rule that holds for all of them."""

Level = Literal[1, 2, 3, 4]


class Example(BaseModel):
    """A worked example: this demand and this item make the rule fire."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    dimension: str = ""
    """Needed where the rule holds for any dimension, else that of the rule."""
    asked: str
    """The value demanded."""
    found: str | None = None
    """What the item has, with a share where one is told ("cotton 92"); left out when it states nothing."""
    shop: str = "boutique"
    """Key of the vocabulary in ``data/rules/example_shops.yaml`` that holds the values; unused by the rules
    of a vertical, whose own vocabulary serves."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Rule(BaseModel):
    """One row."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    id: str = Field(min_length=1)
    """Unique name; a vertical replaces a universal rule by giving its id."""
    dimension: str
    """One of the 18 dimensions, or "any" for all of them."""
    when: Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]
    """Relations that fire it (keys of ``RELATIONS``); where negated and of any dimension, those of
    ``NEGATED_RELATIONS``."""
    negated: bool = False
    """Whether the demand must be negated ("not leather")."""
    at_most: float | None = None
    """Fires only up to this measure of the relation, inclusive."""
    at_least: float | None = None
    """Fires only from this measure on, inclusive. Of the rules for one relation the tightest bound that holds
    wins, and the one without a bound takes the rest."""
    level: Level
    """The level it caps the label at."""
    everyday: Level | None = None
    """The level by everyday sense, for a judge who does not know the rule; left out if the same."""
    reason: str = Field(min_length=1)
    """Why, in a few words."""
    examples: tuple[Example, ...] = Field(min_length=1)
    """At least one, and each is a test."""

    def holds(self, measure: float) -> bool:
        """Whether the measure lies within the bound; a rule without one always holds."""
        if self.at_most is not None:
            return measure <= self.at_most
        return self.at_least is None or measure >= self.at_least

    @property
    def bounded(self) -> bool:
        """Whether it takes only a part of the measures."""
        return self.at_most is not None or self.at_least is not None

    def at(self, industry_rules: bool) -> int:
        """The level with the rules known, or by everyday sense."""
        return self.level if industry_rules or self.everyday is None else self.everyday

    def problems(self) -> Iterator[Problem]:
        """What is wrong with this row alone."""
        general = self.dimension == ANY
        if not general and self.dimension not in DIMENSIONS:
            said = f"unknown dimension {self.dimension!r}; {nearest(self.dimension, DIMENSIONS)}"
            yield Problem(("dimension",), said)
        if general and not self.negated:
            yield Problem(("dimension",), "only a negated rule may hold for any dimension; name one")
        known = NEGATED_RELATIONS if general else RELATIONS
        for name in self.when:
            if name not in known:
                yield Problem(("when",), f"unknown relation {name!r}; {nearest(name, known)}")
        if self.at_most is not None and self.at_least is not None:
            yield Problem(("at_most",), "'at_most' and 'at_least' together; give one bound")
        if self.negated and not general and self.level < 3:
            yield Problem(("level",), "only a met demand breaks its negation; give 3 or 4")

    def may_mean(self, dimension: str, relation: str) -> bool:
        """Whether it could be meant for this relation: a word that is unknown may stand for any."""
        general = self.dimension == ANY
        known = NEGATED_RELATIONS if general else RELATIONS
        there = self.dimension == dimension or not (general or self.dimension in DIMENSIONS)
        return there and (relation in self.when or any(name not in known for name in self.when))


Key = tuple[str, str, bool]
"""Dimension, relation, negated: what a rule is looked up by."""


class Gap(NamedTuple):
    """A relation for which a book does not name exactly one rule, and what to say of it."""

    key: Key
    problem: Problem


@dataclass(frozen=True)
class RuleBook:
    """Rules by what fires them.

    Attributes:
        rules: in the order of their files; a vertical's rule stands in the place of the one it replaces.
    """

    rules: tuple[Rule, ...]

    @functools.cached_property
    def _rows(self) -> dict[Key, tuple[Rule, ...]]:
        rows: dict[Key, list[Rule]] = defaultdict(list)
        for rule in self.rules:
            for relation in rule.when:
                rows[rule.dimension, relation, rule.negated].append(rule)
        return {key: tuple(sorted(found, key=_tightest_first)) for key, found in rows.items()}

    def replaced_by(self, rules: Iterable[Rule]) -> RuleBook:
        """These rules over the present ones: the same id replaces, a new id is added."""
        by_id = {rule.id: rule for rule in self.rules} | {rule.id: rule for rule in rules}
        return RuleBook(tuple(by_id.values()))

    def fired(
        self, dimension: str, relation: str, measure: float, negated: bool, industry_rules: bool
    ) -> Rule:
        """The one rule that decides."""
        plain = next(rule for rule in self._rows[dimension, relation, False] if rule.holds(measure))
        if not negated:
            return plain
        met = plain.at(industry_rules) == 4
        own = () if met else self._rows.get((dimension, relation, True), ())
        rows = own or self._rows[ANY, "met" if met else "unmet", True]
        return next(rule for rule in rows if rule.holds(measure))

    def row_problems(self) -> Iterator[Problem]:
        """Repeated ids and malformed rows; paths begin at the position of the rule."""
        seen: set[str] = set()
        for at, rule in enumerate(self.rules):
            if rule.id in seen:
                yield Problem((at, "id"), f"rule {rule.id!r} stands twice; rename or drop one")
            seen.add(rule.id)
            for path, message in rule.problems():
                yield Problem((at, *path), f"rule {rule.id!r}: {message}")

    def doubtful(self, ids: Container[str]) -> Callable[[str, str], bool]:
        """Whether a relation of a dimension is one that a rule of these ids may be meant for."""
        rules = [rule for rule in self.rules if rule.id in ids]
        return lambda dimension, relation: any(rule.may_mean(dimension, relation) for rule in rules)

    def bounds(self) -> Iterator[Gap]:
        """Relations whose bounds leave a gap or overlap; paths begin at the position of one of the rules."""
        for key, rows in self._rows.items():
            dimension, relation, negated = key
            what = f"{dimension} {'not ' if negated else ''}{relation!r}"
            where = (max(self.rules.index(rule) for rule in rows), "when")
            rest = [rule.id for rule in rows if not rule.bounded]
            if len(rest) != 1:
                said = f"{len(rest)} rules without a bound for {what} ({', '.join(rest) or 'none'})"
                yield Gap(key, Problem(where, f"{said}; there must be exactly one, which takes the rest"))
            bounds = [(rule.at_most, rule.at_least) for rule in rows if rule.bounded]
            if len({most is None for most, _ in bounds}) > 1 or len(set(bounds)) < len(bounds):
                ids = ", ".join(rule.id for rule in rows if rule.bounded)
                said = f"the bounds for {what} overlap ({ids}); use one side, each number once"
                yield Gap(key, Problem(where, said))

    def missing(self, dimensions: Mapping[str, Dimension]) -> Iterator[Gap]:
        """Relations that a dimension's kind makes possible and no rule covers; paths begin at its name."""
        for name, dimension in dimensions.items():
            for relation in sorted(dimension.possible()):
                key = (name, relation, False)
                if key not in self._rows:
                    said = f"no rule for {name} {relation!r} ({RELATIONS[relation]}), which kind"
                    said += f" {dimension.kind!r} makes possible; add one"
                    yield Gap(key, Problem((name, "kind"), said))


def _tightest_first(rule: Rule) -> float:
    if rule.at_most is not None:
        return rule.at_most
    return -rule.at_least if rule.at_least is not None else float("inf")


class _RuleFile(RootModel[tuple[Rule, ...]]):
    """A file of rules alone."""

    @model_validator(mode="after")
    def _consistent(self) -> _RuleFile:
        book = RuleBook(self.root)
        problems = list(book.row_problems())
        doubtful = book.doubtful({self.root[int(at)].id for (at, *_), _ in problems})
        problems += [problem for (*on, _), problem in book.bounds() if not doubtful(*on)]
        if problems:
            raise Contradictions(problems)
        return self


@functools.cache
def universal_rules() -> RuleBook:
    """The rules of ``data/rules/universal.yaml``.

    Raises:
        DataError: malformed YAML or rules; every problem is named with its line.
    """
    return RuleBook(load(project_root() / "data" / "rules" / "universal.yaml", _RuleFile).root)


class Judgement(NamedTuple):
    """The outcome of path following.

    Attributes:
        label: "L1".."L4".
        mismatch: for L2 the dimension that failed (first in the order of ``DIMENSIONS``), else "".
        path: one verdict per demand, in the order of ``DIMENSIONS``.
    """

    label: str
    mismatch: str
    path: tuple[Verdict, ...]


class Engine:
    """Judges with one vertical's dimensions and rules; verdicts are cached, because values repeat.

    Args:
        name: of the vertical, for messages.
        dimensions: the vertical's dimensions.
        book: rules that cover them.
    """

    def __init__(self, name: str, dimensions: Mapping[str, Dimension], book: RuleBook) -> None:
        self._name, self._dimensions, self._book = name, dimensions, book
        self.verdict = functools.lru_cache(maxsize=2**17)(self._verdict)
        self._steps = functools.lru_cache(maxsize=2**14)(self._in_order)

    def judge(self, demands: Iterable[Demand], item: Attributes, industry_rules: bool) -> Judgement:
        """See :func:`judge`."""
        path: list[Verdict] = []
        level, mismatch = 4, ""
        for demand, dimension, share in self._steps(tuple(demands)):
            step = self.verdict(demand, item.get(dimension, NOT_STATED), item.get(share), industry_rules)
            path.append(step)
            if step.level < level:
                level, mismatch = step.level, dimension
        return Judgement(f"L{level}", mismatch if level == 2 else "", tuple(path))

    def _in_order(self, demands: tuple[Demand, ...]) -> tuple[tuple[Demand, str, str], ...]:
        """The demands in the order of ``DIMENSIONS``, with the keys of their evidence and its share."""
        if not demands:
            raise DataError("a query without demands cannot be judged; give it at least a category demand")
        for demand in demands:
            self._kind(demand.dimension)
        order = list(DIMENSIONS)
        ordered = sorted(demands, key=lambda demand: (order.index(demand.dimension), demand))
        return tuple((demand, demand.dimension, share_key(demand.dimension)) for demand in ordered)

    def _kind(self, dimension: str) -> Dimension:
        if dimension not in self._dimensions:
            known = ", ".join(self._dimensions)
            raise DataError(f"no rule for dimension {dimension!r} in {self._name}; rules exist for {known}")
        return self._dimensions[dimension]

    def relation(self, demand: Demand, found: str, share: str | None) -> Relation:
        """How what is found relates to what is demanded.

        Raises:
            DataError: a dimension that the vertical does not have.
        """
        kind = self._kind(demand.dimension)
        return kind.relation(demand.value, found, float(share) if share and _told(kind, share) else 100.0)

    def _verdict(self, demand: Demand, found: str, share: str | None, industry_rules: bool) -> Verdict:
        kind, relation = self._kind(demand.dimension), self.relation(demand, found, share)
        rule = self._book.fired(demand.dimension, *relation, demand.negated, industry_rules)
        asked = f"not {demand.value}" if demand.negated else demand.value
        tells = _told(kind, share) and kind.tells_share(found) and not demand.negated
        shown = f"{found} {share}" if tells else found
        level = rule.at(industry_rules)
        return Verdict(demand.dimension, asked, shown, relation.name, level, rule.id, rule.reason)


def _told(kind: Dimension, share: str | None) -> bool:
    return share is not None and share.isdecimal() and kind.shared


def share_key(dimension: str) -> str:
    """Where an item's attributes keep the share of a value in per cent."""
    return f"{dimension}_share"


def judge(
    vertical: Vertical, demands: Iterable[Demand], item: Attributes, industry_rules: bool = True
) -> Judgement:
    """Judge an item against all demands of a query.

    The result does not depend on the order of ``demands``.

    Args:
        vertical: vocabularies and rules.
        demands: at least one demand.
        item: known attributes, dimension -> value; missing means not stated.
        industry_rules: False judges by everyday sense alone, with the level ``everyday`` of each rule: what
            the rules call near is then taken for a match (a shade of the same family) or for a conflict (a
            price just over the limit).

    Raises:
        DataError: no demand at all, or a dimension that the vertical does not have.
    """
    return vertical.engine.judge(demands, item, industry_rules)


def verdict(vertical: Vertical, demand: Demand, item: Attributes, industry_rules: bool = True) -> Verdict:
    """Judge one demand; a negated demand conflicts exactly where the plain one would be met.

    Raises:
        DataError: a dimension that the vertical does not have.
    """
    found, share = item.get(demand.dimension, NOT_STATED), item.get(share_key(demand.dimension))
    return vertical.engine.verdict(demand, found, share, industry_rules)


def example_problems(
    vertical: Vertical, rule: Rule, unsettled: Callable[[str, str], bool] | None = None
) -> Iterator[Problem]:
    """Run a rule's worked examples; paths begin at the rule.

    Args:
        vertical: the vocabulary, and the rules that decide.
        rule: one of them.
        unsettled: tells relations of a dimension that no single rule decides yet; examples that come to one
            are passed over.
    """
    for at, example in enumerate(rule.examples):
        where = ("examples", at)
        dimension = example.dimension or rule.dimension
        if dimension not in vertical.dimensions:
            known = nearest(dimension, vertical.dimensions)
            yield Problem(where, f"rule {rule.id!r}: {vertical.name} has no dimension {dimension!r}; {known}")
            continue
        kind = vertical.dimensions[dimension]
        if example.asked not in kind.demands():
            hint = nearest(example.asked, kind.demands())
            yield Problem(where, f"rule {rule.id!r}: unknown {dimension} {example.asked!r}; {hint}")
            continue
        item = {} if example.found is None else kind.attributes(dimension, example.found)
        demand = Demand(dimension, example.asked, example.asked, rule.negated)
        if unsettled and _meets(vertical, demand, item, unsettled):
            continue
        step = verdict(vertical, demand, item)
        if step.rule != rule.id:
            said = f"asked {example.asked!r}, found {step.found!r} fires {step.rule!r} (level {step.level})"
            yield Problem(where, f"rule {rule.id!r}: {said} instead; correct the example or the rule")


def _meets(
    vertical: Vertical, demand: Demand, item: Attributes, unsettled: Callable[[str, str], bool]
) -> bool:
    """Whether the verdict would rest on a relation that is unsettled."""
    found, share = item.get(demand.dimension, NOT_STATED), item.get(share_key(demand.dimension))
    relation = vertical.engine.relation(demand, found, share).name
    general = demand.negated and any(unsettled(ANY, name) for name in NEGATED_RELATIONS)
    return general or unsettled(demand.dimension, relation)
