"""Kinds of dimension: how a vocabulary is ordered, and so how a found value can relate to the one demanded.

A kind knows nothing of levels. It names the *relation* between two values and, where that makes sense, a
*measure* (a percentage, a number of steps or pieces); the rules map both to a level.
"""
# ruff: noqa: D102 - the methods of all kinds are documented once, in _Kind

from __future__ import annotations

import functools
import itertools
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from lore_lib.errors import nearest
from lore_lib.vertical.source import Problem

RGB = tuple[int, int, int]

NOT_STATED = "none"
"""The word for evidence that is missing."""

JOIN = "+"
"""Joins the values of a demand or an item that has several ("cleanser+toner")."""

PATTERNS = ("plain", "striped", "dotted", "checked")
"""Patterns that pictures are drawn with and the pixel captioner knows."""

RELATIONS: dict[str, str] = {
    "same": "the value asked for; blend, family: measure = its share in per cent",
    "covers": "a general value that serves the one asked for",
    "near": "listed as alike",
    "child": "a member of what was asked for: a shade, a sub-brand, an accessory; family: measure = share",
    "parent": "what the value asked for belongs to",
    "sibling": "shares its parent: another shade of the family, another category of the group",
    "competitor": "listed as a substitute",
    "pure": "the material asked for as pure; measure = its share in per cent",
    "step": "the same ladder; measure = number of steps between",
    "within": "inside the limit",
    "over": "beyond the limit; measure = per cent beyond",
    "multiple": "a whole multiple of the amount; measure = how many",
    "off": "another amount; measure = per cent of difference",
    "sample": "a sample instead of the full size",
    "full_size": "the full size instead of a sample",
    "more": "all that was asked for and more",
    "fewer": "only a part of what was asked for; measure = pieces found",
    "overlap": "a part of what was asked for, and other things",
    "contradicted": "the opposite is stated",
    "unproven": "a claim that must be stated, is not",
    "not_stated": "nothing is known",
    "other": "none of these",
}
"""Relation -> meaning."""

NEGATED_RELATIONS: dict[str, str] = {
    "met": "the plain demand would be met",
    "unmet": "the plain demand would not be met",
}
"""What a negated demand may fall back on, whatever the dimension."""


class Relation(NamedTuple):
    """How a found value relates to the one demanded."""

    name: str
    measure: float = 0.0


class _Kind(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    shared: ClassVar[bool] = False
    """Whether an item's value may carry its share in per cent ("cotton 80")."""

    @abstractmethod
    def demands(self) -> list[str]:
        """Values that a query may ask for."""

    def found(self) -> list[str]:
        """Values that an item may have, with their share where it is told."""
        return self.demands()

    def negatable(self) -> list[str]:
        """Values that the world may ask *not* to have."""
        return self.demands()

    def attributes(self, dimension: str, text: str) -> dict[str, str]:
        """What an item's text says of this dimension: the value, and its share where kind and text tell one.

        >>> Set(kind="set", values=["dry"]).attributes("audience", "dry")
        {'audience': 'dry'}
        >>> Blend(kind="blend", kin={"cotton": ""}).attributes("material", "cotton 92")
        {'material': 'cotton', 'material_share': '92'}
        """
        value, _, share = text.rpartition(" ")
        if self.shared and value and share.isdecimal():
            return {dimension: value, f"{dimension}_share": share}
        return {dimension: text}

    def tells_share(self, value: str) -> bool:
        """Whether a verdict shows this value with its share."""
        return self.shared

    def relation(self, want: str, have: str, share: float = 100.0) -> Relation:
        """How ``have`` relates to ``want``; ``share`` is the stated percentage of ``have`` in the item."""
        return self._silent(want) if have == NOT_STATED else self._stated(want, have, share)

    def _silent(self, want: str) -> Relation:
        """The relation where the item states nothing."""
        return Relation("not_stated")

    @abstractmethod
    def _stated(self, want: str, have: str, share: float) -> Relation:
        """The relation to a value that the item states."""

    @abstractmethod
    def possible(self) -> set[str]:
        """Every relation that :meth:`relation` may return."""

    def problems(self) -> Iterator[Problem]:
        """Contradictions inside this dimension."""
        yield from ()


class Taxonomy(_Kind):
    """A tree: industries (optional) over groups over values, with pairs that are near across groups."""

    kind: Literal["taxonomy"]
    """A tree: for categories and stores."""
    industries: dict[str, list[str]] = {}
    """Industry -> its groups; may be left out."""
    groups: dict[str, list[str]]
    """Group -> its values; another value of the group is related, another group is unrelated."""
    near: list[tuple[str, str]] = []
    """Pairs of values near in function and form."""

    @functools.cached_property
    def group_of(self) -> dict[str, str]:
        """Value -> group."""
        return {value: group for group, members in self.groups.items() for value in members}

    @functools.cached_property
    def industry_of(self) -> dict[str, str]:
        """Value -> industry."""
        above = {group: industry for industry, groups in self.industries.items() for group in groups}
        return {value: above.get(group, "") for value, group in self.group_of.items()}

    def demands(self) -> list[str]:
        return list(self.group_of)

    def _stated(self, want: str, have: str, share: float) -> Relation:
        if have == want:
            return Relation("same")
        if (want, have) in self.near or (have, want) in self.near:
            return Relation("near")
        return Relation("sibling" if self.group_of.get(have) == self.group_of.get(want, "") else "other")

    def possible(self) -> set[str]:
        return {"same", "sibling", "other", "not_stated"} | ({"near"} if self.near else set())

    def problems(self) -> Iterator[Problem]:
        yield from _repeated("groups", self.groups)
        yield from _repeated("industries", self.industries)
        placed = {group for groups in self.industries.values() for group in groups}
        for group in self.groups:
            if self.industries and group not in placed:
                yield Problem(("groups", group), f"group {group!r} stands in no industry; add it to one")
        for industry, groups in self.industries.items():
            for at, group in enumerate(groups):
                if group not in self.groups:
                    hint = nearest(group, self.groups)
                    yield Problem(("industries", industry, at), f"unknown group {group!r}; {hint}")
        for value, group in self.group_of.items():
            if value in self.groups or value in self.industries:
                said = f"cyclic taxonomy: {value!r} is a value and a level above the values; rename one"
                yield Problem(("groups", group), said)
        for group in self.groups:
            if group in self.industries:
                said = f"cyclic taxonomy: {group!r} is a group and an industry; rename one"
                yield Problem(("industries", group), said)
        for at, pair in enumerate(self.near):
            for name in pair:
                if name not in self.group_of:
                    hint = nearest(name, self.group_of)
                    yield Problem(("near", at), f"unknown value {name!r}; {hint}")
            if pair[0] == pair[1]:
                yield Problem(("near", at), f"{pair[0]!r} is near to itself; name two values")


class Family(_Kind):
    """Families of close values, such as shades of a colour or trims of a series; colours carry their RGB."""

    kind: Literal["family"]
    """Values with close relatives: for colors and models."""
    shared: ClassVar[bool] = True
    families: dict[str, dict[str, RGB] | list[str]]
    """Family -> its members, shades with the RGB (0 to 255) that pictures show; it admits each of them."""

    @functools.cached_property
    def family_of(self) -> dict[str, str]:
        """Value -> family; a family maps to itself."""
        members = {value: family for family, values in self.families.items() for value in values}
        return members | {family: family for family in self.families}

    @functools.cached_property
    def rgb(self) -> dict[str, RGB]:
        """Value -> RGB, for families of colours."""
        return {
            value: rgb
            for values in self.families.values()
            if isinstance(values, dict)
            for value, rgb in values.items()
        }

    def demands(self) -> list[str]:
        return list(self.family_of)

    def found(self) -> list[str]:
        return [value for values in self.families.values() for value in values]

    def attributes(self, dimension: str, text: str) -> dict[str, str]:
        known = text in self.family_of  # "Kestrel 3" is a model, not 3 % of a Kestrel
        return {dimension: text} if known else super().attributes(dimension, text)

    def negatable(self) -> list[str]:
        return list(self.families)

    def _stated(self, want: str, have: str, share: float) -> Relation:
        if have == want:
            return Relation("same", share)
        family = self.family_of.get(have)
        if family == want:
            return Relation("child", share)
        if family is None or family != self.family_of.get(want):
            return Relation("other")
        return Relation("parent" if have == family else "sibling")

    def possible(self) -> set[str]:
        return {"same", "child", "parent", "sibling", "other", "not_stated"}

    def problems(self) -> Iterator[Problem]:
        yield from _repeated("families", self.families)
        for family, values in self.families.items():
            for value in values:
                if value in self.families:
                    yield Problem(
                        ("families", family), f"cyclic: {value!r} is a family and a member of {family!r}"
                    )
        for value, rgb in self.rgb.items():
            if not all(0 <= channel <= 255 for channel in rgb):
                where = ("families", self.family_of[value], value)
                yield Problem(where, f"{value!r} is {rgb}; RGB channels run from 0 to 255")


class Blend(_Kind):
    """Materials with their nearest kin; some have their share told and may be asked for as pure."""

    kind: Literal["blend"]
    """Materials that mix."""
    shared: ClassVar[bool] = True
    kin: dict[str, str]
    """Material -> its nearest kin, "" for none."""
    shares: dict[str, list[int]] = {}
    """Materials whose share in an item is told -> the shares that occur, in per cent."""
    pure: dict[str, str] = {}
    """Words for a pure material ("pure cotton") -> the material, which needs shares."""

    def demands(self) -> list[str]:
        return [*self.kin, *self.pure]

    def found(self) -> list[str]:
        whole = [name for name in self.kin if name not in self.shares]
        return whole + [f"{name} {share}" for name, shares in self.shares.items() for share in shares]

    def negatable(self) -> list[str]:
        return [name for name in self.kin if name not in self.shares]

    def tells_share(self, value: str) -> bool:
        return value in self.shares

    def _stated(self, want: str, have: str, share: float) -> Relation:
        if want in self.pure:
            return Relation("pure", share) if have == self.pure[want] else Relation("other")
        if have == want:
            return Relation("same", share if have in self.shares else 100.0)
        return Relation("near" if self.kin.get(want) == have else "other")

    def possible(self) -> set[str]:
        return {"same", "near", "other", "not_stated"} | ({"pure"} if self.pure else set())

    def problems(self) -> Iterator[Problem]:
        for name, kin in self.kin.items():
            if kin and (kin not in self.kin or kin == name):
                yield Problem(("kin", name), f"unknown kin {kin!r}; {nearest(kin, set(self.kin) - {name})}")
        for name, shares in self.shares.items():
            if name not in self.kin:
                yield Problem(("shares", name), f"unknown material {name!r}; {nearest(name, self.kin)}")
            if not shares or not all(0 < share <= 100 for share in shares):
                yield Problem(("shares", name), f"shares {shares} of {name!r}; give percentages of 1 to 100")
        for word, name in self.pure.items():
            if name not in self.shares:
                hint = nearest(name, self.shares)
                yield Problem(("pure", word), f"{word!r} needs 'shares' of {name!r}; {hint}")


class Lineage(_Kind):
    """Values with a parent ("" for none): brands and sub-brands, accessories and what they belong to."""

    kind: Literal["lineage"]
    """Values with parents: for brands, main products and accessories."""
    parents: dict[str, str]
    """Value -> its parent, "" for none."""
    competitors: list[list[str]] = []
    """Values that shoppers take for one another, by groups."""

    @functools.cached_property
    def _rivals(self) -> set[tuple[str, str]]:
        return {pair for group in self.competitors for pair in itertools.permutations(group, 2)}

    def demands(self) -> list[str]:
        return list(self.parents)

    def negatable(self) -> list[str]:
        rivals = list(dict.fromkeys(name for group in self.competitors for name in group))
        return rivals or self.demands()

    def _stated(self, want: str, have: str, share: float) -> Relation:
        if have == want:
            return Relation("same")
        if self.parents.get(have) == want:
            return Relation("child")
        if self.parents.get(want) == have:
            return Relation("parent")
        return Relation("competitor" if (want, have) in self._rivals else "other")

    def possible(self) -> set[str]:
        kin = {"child", "parent"} if any(self.parents.values()) else set()
        return {"same", "other", "not_stated"} | kin | ({"competitor"} if self.competitors else set())

    def problems(self) -> Iterator[Problem]:
        for name, parent in self.parents.items():
            if parent and parent not in self.parents:
                hint = nearest(parent, self.parents)
                yield Problem(("parents", name), f"{name!r} has an unknown parent {parent!r}; {hint}")
            line = [name]
            while (above := self.parents.get(line[-1], "")) and above not in line:
                line.append(above)
            if above == name:
                yield Problem(
                    ("parents", name), f"cyclic lineage: {' -> '.join([*line, name])}; cut it at one place"
                )
        for at, group in enumerate(self.competitors):
            for name in group:
                if name not in self.parents:
                    yield Problem(
                        ("competitors", at), f"unknown value {name!r}; {nearest(name, self.parents)}"
                    )


class Ladder(_Kind):
    """Values in order, in one or more ladders; a general value serves several (unisex, one size)."""

    kind: Literal["ladder"]
    """Values in order: for age stages, sizes and grades."""
    ladders: list[list[str]]
    """Each ladder in order; neighbouring values are one step apart, those of two ladders unrelated."""
    general: dict[str, list[str]] = {}
    """General value of an item -> the values that it serves."""

    @functools.cached_property
    def _rung(self) -> dict[str, tuple[int, int]]:
        return {value: (i, j) for i, ladder in enumerate(self.ladders) for j, value in enumerate(ladder)}

    def demands(self) -> list[str]:
        return list(self._rung)

    def found(self) -> list[str]:
        return [*self._rung, *self.general]

    def _stated(self, want: str, have: str, share: float) -> Relation:
        if have == want:
            return Relation("same")
        if want in self.general.get(have, ()):
            return Relation("covers")
        here, there = self._rung.get(want), self._rung.get(have)
        if here and there and here[0] == there[0]:
            return Relation("step", abs(here[1] - there[1]))
        return Relation("other")

    def possible(self) -> set[str]:
        steps = {"step"} if any(len(ladder) > 1 for ladder in self.ladders) else set()
        return {"same", "other", "not_stated"} | steps | ({"covers"} if self.general else set())

    def problems(self) -> Iterator[Problem]:
        yield from _repeated("ladders", dict(enumerate(self.ladders)))
        yield from _general_problems(self.general, self._rung)


class Limit(_Kind):
    """An upper limit on a number, such as a price; items have whole numbers in ``lowest..highest``."""

    kind: Literal["limit"]
    """An upper limit: for prices."""
    limits: list[int] = Field(min_length=1)
    """Limits that queries name."""
    lowest: int = Field(ge=0)
    """Lowest number of an item."""
    highest: int
    """Highest number of an item."""

    def demands(self) -> list[str]:
        return [str(limit) for limit in self.limits]

    def found(self) -> list[str]:
        return [str(number) for number in range(self.lowest, self.highest + 1)]

    def _stated(self, want: str, have: str, share: float) -> Relation:
        try:
            limit, number = float(want), float(have)
        except ValueError:  # a seller's word in place of a number tells nothing
            return self._silent(want)
        return Relation("within") if number <= limit else Relation("over", _percent(number, limit))

    def possible(self) -> set[str]:
        return {"within", "over", "not_stated"}

    def problems(self) -> Iterator[Problem]:
        for at, limit in enumerate(self.limits):
            if not self.lowest <= limit <= self.highest or limit <= 0:
                span = f"{self.lowest} to {self.highest}"
                yield Problem(("limits", at), f"limit {limit} lies outside of the items' {span}")


_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-z]*)")


class Amount(_Kind):
    """A number with a unit, such as a volume: asked for, sold, and up to where it is a sample."""

    kind: Literal["amount"]
    """Numbers with a unit: for volumes and weights."""
    unit: str = Field(pattern="^[a-z]*$")
    """Unit in small letters ("ml"), or "" for a bare number."""
    asked: list[float] = Field(min_length=1)
    """Amounts that queries name; each is sold."""
    sold: list[float] = Field(min_length=1)
    """Amounts that items have."""
    sample: float = 0.0
    """Up to this amount an item is a sample; 0 for no samples."""

    def demands(self) -> list[str]:
        return [f"{number:g}{self.unit}" for number in self.asked]

    def found(self) -> list[str]:
        return [f"{number:g}{self.unit}" for number in self.sold]

    def _stated(self, want: str, have: str, share: float) -> Relation:
        asked, found = _AMOUNT.fullmatch(want), _AMOUNT.fullmatch(have)
        if not asked or not found or asked[2] != found[2] or not float(asked[1]):
            return Relation("other")
        wanted, number = float(asked[1]), float(found[1])
        if number == wanted:
            return Relation("same")
        if (number <= self.sample) != (wanted <= self.sample):
            return Relation("sample" if number <= self.sample else "full_size")
        if number and number % wanted == 0:
            return Relation("multiple", number / wanted)
        return Relation("off", abs(_percent(number, wanted)))

    def possible(self) -> set[str]:
        samples = {"sample", "full_size"} if self.sample else set()
        return {"same", "multiple", "off", "other", "not_stated"} | samples

    def problems(self) -> Iterator[Problem]:
        for field in ("asked", "sold"):
            for at, number in enumerate(getattr(self, field)):
                if not 0 < number < float("inf"):
                    yield Problem((field, at), f"amount {number}; give a number above 0")
        for at, number in enumerate(self.asked):
            if number not in self.sold:
                yield Problem(("asked", at), f"amount {number:g} is asked for and not sold; add it to 'sold'")


class Set(_Kind):
    """Values without order, of which an item may hold ``several``."""

    kind: Literal["set"]
    """Values without order: for styles, ingredients, functions, seasons and sets."""
    values: list[str]
    """What an item may have."""
    general: dict[str, list[str]] = {}
    """General value of an item -> the values that it serves."""
    several: int = Field(default=1, ge=1, le=4)
    """How many of the values an item may have at once."""
    asked: list[str] = []
    """What queries ask for, if not just the values: some of them, or joined ones ("toner+serum")."""
    unwanted: list[str] = []
    """Values that negated demands ask for; left out, all that may be asked for."""
    pictured: bool = False
    """Whether pictures show it; its values are then patterns that the captioner knows."""

    def demands(self) -> list[str]:
        return self.asked or list(self.values)

    def negatable(self) -> list[str]:
        return self.unwanted or self.demands()

    def found(self) -> list[str]:
        return [*_joined(self.values, self.several), *self.general]

    def _stated(self, want: str, have: str, share: float) -> Relation:
        if have == want:
            return Relation("same")
        if want in self.general.get(have, ()):
            return Relation("covers")
        wanted, held = set(want.split(JOIN)), set(have.split(JOIN))
        if wanted == held:
            return Relation("same")
        if self.several == 1 or not wanted & held:
            return Relation("other")
        if wanted < held:
            return Relation("more", len(held - wanted))
        return Relation("fewer", len(held)) if held < wanted else Relation("overlap")

    def possible(self) -> set[str]:
        names = {"same", "other", "not_stated"} | ({"covers"} if self.general else set())
        names |= {"more"} if self.several > 1 else set()
        return names | ({"fewer", "overlap"} if any(JOIN in value for value in self.asked) else set())

    def problems(self) -> Iterator[Problem]:
        yield from _repeated("values", {"": self.values})
        if self.pictured and (self.general or self.several > 1):
            yield Problem(("pictured",), "a picture shows one pattern; drop 'general' and 'several'")
        for at, value in enumerate(self.values):
            if self.pictured and value not in PATTERNS:
                said = f"{value!r} cannot be drawn or seen; {nearest(value, PATTERNS)}"
                yield Problem(("values", at), f"{said}, or drop 'pictured'")
            if JOIN in value:
                yield Problem(("values", at), f"value {value!r} holds {JOIN!r}, which joins values; drop it")
        yield from _general_problems(self.general, self.values)
        for at, value in enumerate(self.unwanted):
            if value not in self.values:
                yield Problem(("unwanted", at), f"unknown value {value!r}; {nearest(value, self.values)}")
        for at, joined in enumerate(self.asked):
            pieces = joined.split(JOIN)
            if len(pieces) > self.several:
                said = f"{joined!r} asks for {len(pieces)} values, but items hold at most {self.several}"
                yield Problem(("asked", at), f"{said}; raise 'several'")
            for value in pieces:
                if value not in self.values:
                    yield Problem(("asked", at), f"unknown value {value!r}; {nearest(value, self.values)}")


class Flags(_Kind):
    """Claims that are stated, silent or contradicted; of a ``strict`` one silence is not enough."""

    kind: Literal["flags"]
    """Claims: for special attributes."""
    opposites: dict[str, str]
    """Claim -> what contradicts it, "" for nothing."""
    strict: list[str] = []
    """Claims that must be stated; silence is not enough."""
    several: int = Field(default=1, ge=1, le=4)
    """How many claims an item may make at once."""

    def demands(self) -> list[str]:
        return list(self.opposites)

    def found(self) -> list[str]:
        against = [opposite for opposite in self.opposites.values() if opposite]
        return _joined([*self.opposites], self.several) + list(dict.fromkeys(against))

    def _silent(self, want: str) -> Relation:
        return Relation("unproven" if want in self.strict else "not_stated")

    def _stated(self, want: str, have: str, share: float) -> Relation:
        held = have.split(JOIN)
        if want in held:
            return Relation("same")
        against = self.opposites.get(want)
        return Relation("contradicted") if against and against in held else self._silent(want)

    def possible(self) -> set[str]:
        names = {"same"} | ({"contradicted"} if any(self.opposites.values()) else set())
        names |= {"unproven"} if self.strict else set()
        return names | ({"not_stated"} if set(self.opposites) - set(self.strict) else set())

    def problems(self) -> Iterator[Problem]:
        for flag, opposite in self.opposites.items():
            if opposite in self.opposites:
                yield Problem(("opposites", flag), f"opposite {opposite!r} is itself a claim; rename one")
        for at, flag in enumerate(self.strict):
            if flag not in self.opposites:
                yield Problem(("strict", at), f"unknown claim {flag!r}; {nearest(flag, self.opposites)}")


Dimension = Annotated[
    Taxonomy | Family | Blend | Lineage | Ladder | Limit | Amount | Set | Flags, Field(discriminator="kind")
]
"""A dimension of a vertical, of any kind."""


def _percent(number: float, of: float) -> float:
    """How far ``number`` lies above ``of``, in per cent; rounded, so that 44 is exactly 10 % above 40."""
    return round(100 * (number - of) / of, 6) if of else 100.0


def _joined(values: list[str], several: int) -> list[str]:
    sizes = range(1, several + 1)
    return [JOIN.join(part) for size in sizes for part in itertools.combinations(values, size)]


def _repeated(field: str, places: Mapping[Any, Iterable[str]]) -> Iterator[Problem]:
    seen: set[str] = set()
    for place, values in places.items():
        for value in values:
            if value in seen:
                where = (field, place) if place != "" else (field,)
                yield Problem(where, f"{value!r} stands in two places; keep one")
            seen.add(value)


def _general_problems(general: Mapping[str, list[str]], values: Iterable[str]) -> Iterator[Problem]:
    known = list(values)
    for name, served in general.items():
        if name in known:
            yield Problem(("general", name), f"{name!r} is general and a plain value; keep one")
        for at, value in enumerate(served):
            if value not in known:
                yield Problem(("general", name, at), f"unknown value {value!r}; {nearest(value, known)}")
