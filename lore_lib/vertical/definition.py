"""The vertical's YAML file as checked, frozen data."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lore_lib.artifacts import project_root
from lore_lib.errors import DataError, nearest
from lore_lib.vertical.schema import DIMENSIONS, INTENTS

RGB = tuple[int, int, int]


class Slang(BaseModel):
    """A surface form that only the lexicon explains: its intent and the one value it stands for."""

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


class PureShare(BaseModel):
    """Stated cotton percentage from which "pure cotton" is met (``full``) or nearly met (``near``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    full: int
    near: int


class Vertical(BaseModel):
    """Everything the rule engine, the world and the teachers know about one vertical.

    The fields are those of ``data/verticals/<name>/vertical.yaml``, where each is commented.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    title: str
    industries: dict[str, list[str]]
    groups: dict[str, list[str]]
    near_categories: list[tuple[str, str]]
    colors: dict[str, dict[str, RGB]]
    materials: dict[str, str]
    cotton_shares: list[int]
    pure_share: PureShare
    blend_share: int
    audiences: dict[str, list[str]]
    unisex_fits: list[str]
    brands: dict[str, str]
    styles: list[str]
    price_limits: list[int]
    price_tolerance: float
    lexicon: dict[str, Slang]

    @model_validator(mode="after")
    def _consistent(self) -> Vertical:
        problems: list[str] = []
        _unique(problems, "groups", (c for members in self.groups.values() for c in members))
        _unique(problems, "colors", (s for shades in self.colors.values() for s in shades))
        grouped = [group for members in self.industries.values() for group in members]
        for group in sorted(set(grouped) ^ set(self.groups)):
            problems.append(f"group {group!r} must stand in both 'groups' and 'industries'")
        for pair in self.near_categories:
            problems += [f"near_categories: unknown category {c!r}" for c in pair if c not in self.group_of]
        for material, kin in self.materials.items():
            if kin and kin not in self.materials:
                problems.append(f"materials.{material}: unknown kin {kin!r}")
        for brand, parent in self.brands.items():
            if parent and parent not in self.brands:
                problems.append(f"brands.{brand}: unknown parent {parent!r}")
        for shade, rgb in self.shades.items():
            if not all(0 <= channel <= 255 for channel in rgb):
                problems.append(f"colors: {shade!r} is {rgb}; RGB channels run from 0 to 255")
        for name in [*self.unisex_fits, *(kin for members in self.audiences.values() for kin in members)]:
            if name not in self.audiences:
                problems.append(f"audiences: unknown audience {name!r}; {nearest(name, self.audiences)}")
        for surface, slang in self.lexicon.items():
            dimension, value = next(iter(slang.means.items()))
            if value not in self.values(dimension):
                hint = nearest(value, self.values(dimension))
                problems.append(f"lexicon.{surface}: {dimension} {value!r} is unknown; {hint}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @functools.cached_property
    def group_of(self) -> dict[str, str]:
        """Category -> group."""
        return {category: group for group, members in self.groups.items() for category in members}

    @functools.cached_property
    def industry_of(self) -> dict[str, str]:
        """Category -> industry."""
        by_group = {group: industry for industry, members in self.industries.items() for group in members}
        return {category: by_group[group] for category, group in self.group_of.items()}

    @functools.cached_property
    def family_of(self) -> dict[str, str]:
        """Shade -> colour family; a family name maps to itself."""
        shades = {shade: family for family, members in self.colors.items() for shade in members}
        return shades | {family: family for family in self.colors}

    @functools.cached_property
    def shades(self) -> dict[str, RGB]:
        """Shade -> RGB."""
        return {shade: rgb for members in self.colors.values() for shade, rgb in members.items()}

    def values(self, dimension: str) -> list[str]:
        """Canonical values a demand of this dimension may take."""
        table: dict[str, list[str]] = {
            "category": list(self.group_of),
            "color": list(self.family_of),
            "material": [*self.materials, "pure cotton"],
            "audience": [name for name in self.audiences if name != "unisex"],
            "brand": list(self.brands),
            "style": list(self.styles),
            "price": [str(limit) for limit in self.price_limits],
        }
        return table.get(dimension, [])


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
        return Vertical.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML in UTF-8: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise DataError(f"{path}: {len(lines)} problem(s): " + " | ".join(lines)) from error


def _unique(problems: list[str], field: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            problems.append(f"{field}: {name!r} stands in two places; keep one")
        seen.add(name)
