"""The vertical's YAML file as checked, frozen data."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lore_lib.artifacts import project_root
from lore_lib.errors import DataError, nearest
from lore_lib.vertical.checking import load
from lore_lib.vertical.kinds import JOIN, RGB, Dimension, Family, Limit, Set, Taxonomy
from lore_lib.vertical.mapping import OwnTables
from lore_lib.vertical.rules import ANY, Engine, Gap, Rule, RuleBook, example_problems, universal_rules
from lore_lib.vertical.schema import DIMENSIONS, INTENTS, Demand
from lore_lib.vertical.source import Contradictions, Location, Problem

COLOR = "color"
"""The dimension whose shades carry the RGB that pictures show."""


class Slang(BaseModel):
    """A surface form that only the lexicon explains: its intent and what it stands for."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    intent: str
    """DJ domain jargon, SS solution seeking, or another key of ``INTENTS``."""
    means: dict[str, str]
    """One dimension, with its value; several joined by "+" are as many demands ("vitamin-c+retinol")."""

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

    @property
    def meaning(self) -> str:
        """The value it stands for, several joined by "+"."""
        return next(iter(self.means.values()))

    def demands(self, surface: str) -> tuple[Demand, ...]:
        """What a query demands by writing ``surface``."""
        ((dimension, values),) = self.means.items()
        return tuple(Demand(dimension, value, surface) for value in values.split(JOIN))


class WorldSpec(BaseModel):
    """What the synthetic world draws. A template holds ``{}`` where the words of the demand go."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    asks: dict[str, float] = Field(min_length=3)
    """Share of each dimension among the demands a query makes beside its category; sums to 1."""
    weights: dict[str, dict[str, float]] = {}
    """Values asked for more often than the others of their dimension (weight 1)."""
    negations: dict[str, str] = {}
    """Dimension -> template of a negated demand ("not {}")."""
    negated_share: float = Field(ge=0, le=1)
    """Share of negated demands in these dimensions."""
    slang_share: float = Field(ge=0, le=1)
    """Share of demands written in slang, in dimensions that have any."""
    question_share: float = Field(ge=0, le=1)
    """Share of queries asked as a question."""
    front: list[str]
    """Dimensions whose words stand before the category, in this order or the reverse."""
    back: dict[str, str]
    """Dimension -> template of the words behind the category ("for {}"), in this order."""
    optional: list[str]
    """Dimensions that an item may leave unstated."""
    only: dict[str, list[str]] = {}
    """Dimension -> groups of categories; others are not asked for it, and lack it unless pictures show it."""
    fits: dict[str, dict[str, list[str]]] = {}
    """Dimension -> group of categories -> its values there, the usual one first (a cover is a phone-part or a
    tablet-part); other groups are not asked for the dimension, and lack it."""
    cpv: list[str]
    """Dimensions in the order of an item's CPV (beside the color, which stands last)."""
    shops: list[str] = Field(min_length=1)
    """Names of shops that belong to no brand."""
    variants: dict[str, str]
    """Group -> the item's variants, blank between them; "" for every other group."""
    hype: list[str] = Field(min_length=1)
    """Words without meaning in titles."""
    silhouettes: dict[str, list[tuple[int, int]]]
    """Group -> corners of its outline in pictures of 32 x 32 pixels."""

    def problems(self, vertical: Vertical) -> Iterator[Problem]:
        """References to what the vertical does not have."""
        known = vertical.dimensions
        named: dict[str, Iterable[str]] = {"asks": self.asks, "weights": self.weights, "only": self.only}
        named |= {"negations": self.negations, "back": self.back, "fits": self.fits}
        for field, table in named.items():
            for name in table:
                if name not in known:
                    yield Problem((field, name), f"unknown dimension {name!r}; {nearest(name, known)}")
        for field, names in (("front", self.front), ("optional", self.optional), ("cpv", self.cpv)):
            for at, name in enumerate(names):
                if name not in known:
                    yield Problem((field, at), f"unknown dimension {name!r}; {nearest(name, known)}")
        for at, name in enumerate(self.optional):
            if name in vertical.pictured:
                yield Problem(("optional", at), f"{name!r} is on every picture, so never unstated; drop it")
        if not math.isclose(sum(self.asks.values()), 1.0):
            yield Problem(("asks",), f"shares sum to {sum(self.asks.values()):g}, not to 1")
        for name in self.asks:
            if name not in self.front and name not in self.back:
                yield Problem(
                    ("asks", name), f"{name!r} is asked for but stands in neither 'front' nor 'back'"
                )
        for field, templates in (("negations", self.negations), ("back", self.back)):
            for name, template in templates.items():
                if "{}" not in template:
                    said = f"template {template!r} has no {{}} for the words of the demand"
                    yield Problem((field, name), said)
        yield from self._fit_problems(vertical)
        if isinstance(category := known.get("category"), Taxonomy):
            yield from self._group_problems(category.groups)

    def _fit_problems(self, vertical: Vertical) -> Iterator[Problem]:
        for name, by_group in self.fits.items():
            if name in ("category", *vertical.pictured):
                yield Problem(("fits", name), f"{name!r} belongs to every item; drop it here")
            if name in self.only:
                yield Problem(("fits", name), f"{name!r} stands under 'only' as well; keep it here")
            known = vertical.dimensions[name].found() if name in vertical.dimensions else []
            for group, values in by_group.items():
                if not values:
                    yield Problem(
                        ("fits", name, group), f"no values for group {group!r}; name one or drop it"
                    )
                for at, value in enumerate(values):
                    if known and value not in known:
                        said = f"unknown {name} {value!r}; {nearest(value, known)}"
                        yield Problem(("fits", name, group, at), said)

    def _group_problems(self, groups: Iterable[str]) -> Iterator[Problem]:
        for field, tables in (("variants", self.variants), ("silhouettes", self.silhouettes)):
            for group in tables:
                if group and group not in groups:
                    yield Problem((field, group), f"unknown group {group!r}; {nearest(group, groups)}")
        for name, only in self.only.items():
            for at, group in enumerate(only):
                if group not in groups:
                    yield Problem(("only", name, at), f"unknown group {group!r}; {nearest(group, groups)}")
        for name, by_group in self.fits.items():
            for group in by_group:
                if group not in groups:
                    said = f"unknown group {group!r}; {nearest(group, groups)}"
                    yield Problem(("fits", name, group), said)
        for group in groups:
            if len(self.silhouettes.get(group, ())) < 3:
                yield Problem(("silhouettes",), f"group {group!r} needs a silhouette of 3 corners or more")


class Vertical(BaseModel):
    """Everything the rule engine, the world and the teachers know about one vertical.

    The fields are those of ``data/verticals/<name>/vertical.yaml``, where each is commented.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    name: str
    """That of its folder."""
    title: str
    """What people call it."""
    dimensions: dict[str, Dimension]
    """One of the 18 dimensions -> its kind, vocabulary and neighbourhoods."""
    rules: tuple[Rule, ...] = ()
    """Rules of the industry, over the universal ones."""
    lexicon: dict[str, Slang] = {}
    """What shoppers write -> what they mean."""
    world: WorldSpec | None = None
    """What the generated world draws; left out by a vertical that has tables of its own."""
    tables: OwnTables | None = None
    """Your own tables, used in place of the world: their files beside this one, with their own columns."""

    @model_validator(mode="after")
    def _consistent(self) -> Vertical:
        ruled, complete = self._rule_problems()
        if problems := [*self._problems(), *ruled]:
            raise Contradictions(problems, complete)
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
        if len(patterns := [name for name in self.pictured if name != COLOR]) > 1:
            said = f"{' and '.join(patterns)} are pictured, but a picture shows one pattern; keep one"
            yield Problem(("dimensions", patterns[1], "pictured"), said)
        yield from self._word_problems()
        if self.world is not None:
            for need, kind in (("price", Limit), (COLOR, Family)):
                if not isinstance(self.dimensions.get(need), kind):
                    said = f"a world needs dimension {need!r} of kind {kind.__name__.lower()!r}; add it"
                    yield Problem(("dimensions",), said)
            yield from _under(("world",), self.world.problems(self))

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

    def _rule_problems(self) -> tuple[list[Problem], bool]:
        """What is wrong with the rules, and whether all of it could be looked for.

        A malformed rule or a gap holds back only what would follow from it: gaps and examples of relations
        that the rule may be meant for, or that lie in the gap.
        """
        problems = list(_under(("rules",), RuleBook(self.rules).row_problems()))
        ids = {self.rules[int(at)].id for (_, at, *_), _ in problems}
        doubtful = RuleBook((*universal_rules().rules, *self.rules)).doubtful(ids)
        known = {name: dimension for name, dimension in self.dimensions.items() if name in DIMENSIONS}
        gaps = [gap for gap in self._gaps(known) if not doubtful(*gap.key[:2])]
        open_keys = {gap.key[:2] for gap in gaps}

        def unsettled(dimension: str, relation: str) -> bool:
            here = dimension in known or dimension == ANY
            return not here or (dimension, relation) in open_keys or doubtful(dimension, relation)

        complete = not problems and not gaps
        problems += [gap.problem for gap in gaps]
        for at, rule in enumerate(self.rules):
            if rule.id not in ids:
                problems += _under(("rules", at), example_problems(self, rule, unsettled))
        return problems, complete

    def _gaps(self, dimensions: Mapping[str, Dimension]) -> Iterator[Gap]:
        position = {rule.id: at for at, rule in enumerate(self.rules)}
        for key, ((at, *field), message) in self.rulebook.bounds():
            own = position.get(self.rulebook.rules[int(at)].id)
            yield Gap(key, Problem(("rules",) if own is None else ("rules", own, *field), message))
        for key, (path, message) in self.rulebook.missing(dimensions):
            yield Gap(key, Problem(("dimensions", *path), message))

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
        color = self.dimensions.get(COLOR)
        return color.rgb if isinstance(color, Family) else {}

    @property
    def pictured(self) -> tuple[str, ...]:
        """Dimensions that pictures show: the color, where its shades carry RGB, and sets of patterns."""
        sets = (n for n, kind in self.dimensions.items() if isinstance(kind, Set) and kind.pictured)
        return (*([COLOR] if self.shades else []), *sets)

    def values(self, dimension: str) -> list[str]:
        """Canonical values a demand of this dimension may take; none for a dimension the vertical lacks."""
        return self.dimensions[dimension].demands() if dimension in self.dimensions else []


def verticals_folder() -> Path:
    """``data/verticals`` of the project."""
    return project_root() / "data" / "verticals"


def vertical_names() -> list[str]:
    """Names of the verticals in :func:`verticals_folder`."""
    return sorted(path.parent.name for path in verticals_folder().glob("*/vertical.yaml"))


def load_vertical(name: str) -> Vertical:
    """Read and check ``data/verticals/<name>/vertical.yaml``.

    Raises:
        DataError: no such vertical (names the nearest), a file that :func:`read_vertical` refuses, or one
            that carries another vertical's name (its tables would be read in place of this one's).
    """
    path = verticals_folder() / name / "vertical.yaml"
    if not path.is_file():
        raise DataError(f"no vertical {name!r} under {verticals_folder()}; {nearest(name, vertical_names())}")
    vertical = read_vertical(path)
    if vertical.name != name:
        raise DataError(f"{path}: name: is {vertical.name!r}; it must be that of its folder: {name!r}")
    return vertical


def read_vertical(path: Path) -> Vertical:
    """Read one vertical file; every problem found is listed in one error, with its line.

    Raises:
        DataError: malformed YAML, repeated keys, unknown fields, wrong types, contradicting values.
    """
    return load(path, Vertical)


def _under(above: Location, problems: Iterable[Problem]) -> Iterator[Problem]:
    return (Problem((*above, *path), message) for path, message in problems)
