"""The vertical's YAML file as checked, frozen data."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lore_lib.artifacts import project_root
from lore_lib.errors import DataError, nearest
from lore_lib.vertical.kinds import JOIN, RGB, Dimension, Family, Limit, Problem, Set, Taxonomy
from lore_lib.vertical.rules import Engine, Rule, RuleBook, example_problems, universal_rules
from lore_lib.vertical.schema import DIMENSIONS, INTENTS, Demand

PICTURED = "color"
"""The dimension that product pictures show."""


class Slang(BaseModel):
    """A surface form that only the lexicon explains: its intent and what it stands for.

    Attributes:
        intent: key of ``INTENTS``.
        means: one dimension, with its value; several joined by "+" are as many demands ("vitamin-c+retinol").
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    intent: str
    means: dict[str, str]

    @model_validator(mode="after")
    def _known(self) -> Slang:
        if self.intent not in INTENTS:
            raise ValueError(f"intent {self.intent!r} is not one of {', '.join(INTENTS)}")
        unknown = [dimension for dimension in self.means if dimension not in DIMENSIONS]
        if unknown:
            raise ValueError(f"unknown dimension {unknown[0]!r}; {nearest(unknown[0], DIMENSIONS)}")
        if len(self.means) != 1:
            raise ValueError(f"'means' must hold exactly one dimension: value, found {len(self.means)}")
        return self

    def demands(self, surface: str) -> tuple[Demand, ...]:
        """What a query demands by writing ``surface``."""
        ((dimension, values),) = self.means.items()
        return tuple(Demand(dimension, value, surface) for value in values.split(JOIN))


class WorldSpec(BaseModel):
    """What the synthetic world draws. A template holds ``{}`` where the words of the demand go.

    Attributes:
        asks: share of each dimension among the demands a query makes beside its category; sums to 1.
        weights: values asked for more often than the others of their dimension (weight 1).
        negations: dimension -> template of a negated demand ("not {}").
        negated_share: share of negated demands in these dimensions.
        slang_share: share of demands written in slang, in dimensions that have any.
        question_share: share of queries asked as a question.
        front: dimensions whose words stand before the category, in this order or the reverse.
        back: dimension -> template of the words behind it ("for {}"), in this order.
        optional: dimensions that an item may leave unstated.
        only: dimension -> groups of categories; others are not asked for it and, unless pictures show it, do
            not have it.
        cpv: dimensions in the order of an item's CPV (beside the pictured one, which stands last).
        shops: names of shops that belong to no brand.
        variants: group -> the item's variants, blank between them; "" for every other group.
        hype: words without meaning in titles.
        silhouettes: group -> corners of its outline in pictures of 32 x 32 pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    asks: dict[str, float] = Field(min_length=3)
    weights: dict[str, dict[str, float]] = {}
    negations: dict[str, str] = {}
    negated_share: float = Field(ge=0, le=1)
    slang_share: float = Field(ge=0, le=1)
    question_share: float = Field(ge=0, le=1)
    front: list[str]
    back: dict[str, str]
    optional: list[str]
    only: dict[str, list[str]] = {}
    cpv: list[str]
    shops: list[str] = Field(min_length=1)
    variants: dict[str, str]
    hype: list[str] = Field(min_length=1)
    silhouettes: dict[str, list[tuple[int, int]]]

    def problems(self, vertical: Vertical) -> Iterator[Problem]:
        """References to what the vertical does not have."""
        known = vertical.dimensions
        named: dict[str, Iterable[str]] = {"asks": self.asks, "weights": self.weights, "only": self.only}
        named |= {"negations": self.negations, "back": self.back}
        for field, table in named.items():
            for name in table:
                if name not in known:
                    yield Problem((field, name), f"unknown dimension {name!r}; {nearest(name, known)}")
        for field, names in (("front", self.front), ("optional", self.optional), ("cpv", self.cpv)):
            for at, name in enumerate(names):
                if name not in known:
                    yield Problem((field, at), f"unknown dimension {name!r}; {nearest(name, known)}")
        for need, kind in (("category", Taxonomy), ("price", Limit), (PICTURED, Family)):
            if not isinstance(known.get(need), kind):
                said = f"a world needs dimension {need!r} of kind {kind.__name__.lower()!r}"
                yield Problem((), f"{said}; add it under 'dimensions'")
        if not math.isclose(sum(self.asks.values()), 1.0):
            yield Problem(("asks",), f"shares sum to {sum(self.asks.values()):g}, not to 1")
        for name in self.asks:
            if name not in self.front and name not in self.back:
                yield Problem(
                    ("asks", name), f"{name!r} is asked for but stands in neither 'front' nor 'back'"
                )
        groups = vertical.taxonomy.groups if "category" in known else {}
        for field, tables in (("variants", self.variants), ("silhouettes", self.silhouettes)):
            for group in tables:
                if group and group not in groups:
                    yield Problem((field, group), f"unknown group {group!r}; {nearest(group, groups)}")
        for name, only in self.only.items():
            for at, group in enumerate(only):
                if group not in groups:
                    yield Problem(("only", name, at), f"unknown group {group!r}; {nearest(group, groups)}")
        for group in groups:
            if len(self.silhouettes.get(group, ())) < 3:
                yield Problem(("silhouettes",), f"group {group!r} needs a silhouette of 3 corners or more")
        for name, template in [*self.negations.items(), *self.back.items()]:
            if "{}" not in template:
                field = "negations" if name in self.negations else "back"
                yield Problem((field, name), f"template {template!r} has no {{}} for the words of the demand")


class Contradictions(ValueError):
    """Problems between parts of the file that are each well-formed."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(_said(problem) for problem in problems))
        self.problems = problems


class Vertical(BaseModel):
    """Everything the rule engine, the world and the teachers know about one vertical.

    The fields are those of ``data/verticals/<name>/vertical.yaml``, where each is commented.

    Attributes:
        name: of its folder.
        title: for people.
        dimensions: key of ``DIMENSIONS`` -> its kind, vocabulary and neighbourhoods.
        rules: of the industry, over the universal ones.
        lexicon: what shoppers write -> what they mean.
        world: what the generated world draws; None for a vertical that has tables of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    title: str
    dimensions: dict[str, Dimension]
    rules: tuple[Rule, ...] = ()
    lexicon: dict[str, Slang] = {}
    world: WorldSpec | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Vertical:
        if problems := list(self._problems()):
            raise Contradictions(problems)
        return self

    def _problems(self) -> Iterator[Problem]:
        for name, dimension in self.dimensions.items():
            if name not in DIMENSIONS:
                said = f"unknown dimension {name!r}; {nearest(name, DIMENSIONS)}"
                yield Problem(("dimensions", name), said)
            yield from _under(("dimensions", name), dimension.problems())
        if not isinstance(self.dimensions.get("category"), Taxonomy):
            said = "every vertical needs dimension 'category' of kind 'taxonomy'"
            yield Problem(("dimensions",), f"{said}; its groups tell what is unrelated")
        yield from self._word_problems()
        if self.world is not None:
            yield from _under(("world",), self.world.problems(self))
        yield from self._rule_problems()

    def _word_problems(self) -> Iterator[Problem]:
        place: dict[str, str] = {}
        for name, dimension in self.dimensions.items():
            for word in [] if isinstance(dimension, Limit) else dimension.demands():
                if place.setdefault(word, name) != name:
                    said = f"{word!r} is a {name} and a {place[word]}; a reader could not tell, rename one"
                    yield Problem(("dimensions", name), said)
        for surface, slang in self.lexicon.items():
            if surface in place:
                said = f"{surface!r} is slang and a {place[surface]}; a reader could not tell, drop one"
                yield Problem(("lexicon", surface), said)
            asked = slang.demands(surface)
            kind = self.dimensions.get(asked[0].dimension)
            several = kind.several if isinstance(kind, Set) else 1
            if len(asked) > several:
                many = f"at most {several} values" if several > 1 else f"one {asked[0].dimension}"
                said = f"{surface!r} means {len(asked)} values, but an item has {many}; give "
                said += "fewer, or raise 'several'" if several > 1 else "one value"
                yield Problem(("lexicon", surface, "means", asked[0].dimension), said)
            for demand in asked:
                known = self.values(demand.dimension)
                if demand.value not in known:
                    hint = nearest(demand.value, known)
                    said = f"{demand.dimension} {demand.value!r} is unknown; {hint}"
                    yield Problem(("lexicon", surface, "means", demand.dimension), said)

    def _rule_problems(self) -> Iterator[Problem]:
        rows = list(RuleBook(self.rules).row_problems())
        yield from _under(("rules",), rows)
        if rows:
            return
        position = {rule.id: at for at, rule in enumerate(self.rules)}
        gaps: list[Problem] = []
        for (at, *field), message in self.rulebook.bound_problems():
            own = position.get(self.rulebook.rules[int(at)].id)
            gaps.append(Problem(("rules",) if own is None else ("rules", own, *field), message))
        gaps += _under(("dimensions",), self.rulebook.missing(self.dimensions))
        yield from gaps
        if not gaps:
            for at, rule in enumerate(self.rules):
                yield from _under(("rules", at), example_problems(self, rule))

    @functools.cached_property
    def rulebook(self) -> RuleBook:
        """The universal rules, with those of the industry over them."""
        return universal_rules().replaced_by(self.rules)

    @functools.cached_property
    def engine(self) -> Engine:
        """The rule engine of this vertical, with its cache."""
        return Engine(self.name, self.dimensions, self.rulebook)

    @property
    def taxonomy(self) -> Taxonomy:
        """The dimension "category"."""
        category = self.dimensions["category"]
        assert isinstance(category, Taxonomy)
        return category

    @property
    def group_of(self) -> dict[str, str]:
        """Category -> group."""
        return self.taxonomy.group_of

    @property
    def industry_of(self) -> dict[str, str]:
        """Category -> industry."""
        return self.taxonomy.industry_of

    @property
    def shades(self) -> dict[str, RGB]:
        """Shade -> RGB; empty without a family of colours."""
        color = self.dimensions.get(PICTURED)
        return color.rgb if isinstance(color, Family) else {}

    def values(self, dimension: str) -> list[str]:
        """Canonical values a demand of this dimension may take; none for a dimension the vertical lacks."""
        return self.dimensions[dimension].demands() if dimension in self.dimensions else []


def verticals_folder() -> Path:
    """``data/verticals`` of the project."""
    return project_root() / "data" / "verticals"


def load_vertical(name: str) -> Vertical:
    """Read and check ``data/verticals/<name>/vertical.yaml``.

    Raises:
        DataError: no such vertical (names the nearest), malformed YAML, or values that contradict each other.
    """
    path = verticals_folder() / name / "vertical.yaml"
    if not path.is_file():
        known = sorted(p.parent.name for p in verticals_folder().glob("*/vertical.yaml"))
        raise DataError(f"no vertical {name!r} under {verticals_folder()}; {nearest(name, known)}")
    return read_vertical(path)


def read_vertical(path: Path) -> Vertical:
    """Read one vertical file; every contradiction found is listed in one error.

    Raises:
        DataError: malformed YAML, unknown field, wrong type or contradicting values.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML in UTF-8: {error}") from error
    if problems := vertical_problems(fields):
        lines = " | ".join(_said(problem) for problem in problems)
        raise DataError(f"{path}: {len(problems)} problem(s): {lines}")
    return Vertical.model_validate(fields)


def vertical_problems(fields: object) -> list[Problem]:
    """Everything wrong with the content of a vertical file, each with the path to where it stands.

    Malformed words of the lexicon, rules and unknown fields do not hide contradictions elsewhere; a malformed
    dimension does, because all the rest refers to it.

    Args:
        fields: the file as plain data.
    """
    try:
        Vertical.model_validate(fields)
    except ValidationError as error:
        problems: list[Problem] = []
        malformed: set[tuple[str | int, ...]] = set()
        for found in error.errors():
            cause = found.get("ctx", {}).get("error")
            if isinstance(cause, Contradictions):
                return cause.problems
            path = found["loc"]
            if path[:1] == ("dimensions",):
                path = path[:2] + path[3:]  # behind the name pydantic puts the kind it tried
            problems.append(Problem(path, found["msg"]))
            malformed.add(path[:2] if path[:1] in (("lexicon",), ("rules",)) else path[:1])
        return problems + _rest_problems(fields, malformed)
    return []


def _rest_problems(fields: object, malformed: set[tuple[str | int, ...]]) -> list[Problem]:
    """Contradictions among the parts that are well-formed, where enough of the file is."""
    if not isinstance(fields, dict) or malformed & {(), *((name,) for name in _NEEDED)}:
        return []
    rest = {name: part for name, part in fields.items() if (name,) not in malformed}
    if isinstance(lexicon := rest.get("lexicon"), dict):
        rest["lexicon"] = {
            word: entry for word, entry in lexicon.items() if ("lexicon", word) not in malformed
        }
    rules = rest.get("rules") or []
    kept = [at for at in range(len(rules)) if ("rules", at) not in malformed]
    rest["rules"] = [rules[at] for at in kept]
    return [
        Problem(("rules", kept[int(path[1])], *path[2:]), message)
        if path[0:1] == ("rules",) and len(path) > 1
        else Problem(path, message)
        for path, message in vertical_problems(rest)
    ]


_NEEDED = ("name", "title", "dimensions")


def _under(above: tuple[str | int, ...], problems: Iterable[Problem]) -> Iterator[Problem]:
    return (Problem((*above, *path), message) for path, message in problems)


def _said(problem: Problem) -> str:
    return f"{'.'.join(map(str, problem.path)) or 'file'}: {problem.message}"
