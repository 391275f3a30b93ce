"""Prompt templates: versioned YAML files whose slots are checked when they are read."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lore_lib.errors import ConfigError, nearest
from lore_lib.vertical.schema import DIMENSIONS, LABELS

BudgetName = Literal["short", "mid", "full"]

ITEM_SECTIONS: tuple[str, ...] = ("title", "picture", "price", "cpv", "shop", "sku", "selling_points")
"""What a prompt may say of an item; where tokens are short and the query does not choose, the first stay."""

SLOTS: tuple[str, ...] = ("pair", "rules", "levels", "dimensions")
"""Slots that a block may hold; ``pair`` and ``rules`` are required."""

_SLOT = re.compile(r"\{([^{}]*)\}")
_VALUE = "{value}"
_FOLDER = Path(__file__).parent / "templates"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Section(_Frozen):
    """How one section is written: its line, which ends in ``{value}``, and what stands between two values."""

    line: str
    join: str = ", "

    @property
    def head(self) -> str:
        """The line up to its first value."""
        return self.line.removesuffix(_VALUE)


class Budget(_Frozen):
    """Tokens of the whole user's turn, and the item's sections that may use them."""

    tokens: int = Field(ge=1)
    sections: tuple[str, ...] = Field(min_length=1)


class Template(_Frozen):
    """A prompt template. The fields are those of the YAML files, which ``templates/en.yaml`` comments."""

    name: str = Field(pattern=r"[a-z][a-z0-9_-]*")
    version: int = Field(ge=1)
    separator: str
    blocks: tuple[str, ...]
    levels: dict[str, str] = {}
    sections: dict[str, Section]
    budgets: dict[BudgetName, Budget]

    @model_validator(mode="after")
    def _consistent(self) -> Template:
        problems = [*self._block_problems(), *self._section_problems(), *self._budget_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _block_problems(self) -> list[str]:
        slots = [slot for block in self.blocks for slot in _SLOT.findall(block)]
        problems = [
            f"blocks: unknown slot {{{slot}}}; {nearest(slot, SLOTS)}" for slot in slots if slot not in SLOTS
        ]
        for slot in SLOTS:
            if slots.count(slot) > 1:
                problems.append(f"blocks: slot {{{slot}}} stands {slots.count(slot)} times; keep one")
        needed = ["pair", "rules", *(["levels"] if self.levels else [])]
        problems += [f"blocks: missing slot {{{slot}}}" for slot in needed if slot not in slots]
        if "rules" in slots and "{rules}" not in self.blocks:
            problems.append(
                "blocks: slot {rules} must be a block of its own, which goes where there are none"
            )
        if ("levels" in slots or self.levels) and set(self.levels) != set(LABELS):
            problems.append(
                f"levels: explain exactly {', '.join(LABELS)}; found {', '.join(self.levels) or 'none'}"
            )
        return problems

    def _section_problems(self) -> list[str]:
        known = ("query", *ITEM_SECTIONS, "rules")
        problems = [
            f"sections: unknown {name!r}; {nearest(name, known)}"
            for name in self.sections
            if name not in known
        ]
        problems += [f"sections: missing {name!r}" for name in known if name not in self.sections]
        if next(iter(self.sections), None) != "query":
            problems.append("sections: 'query' must come first")
        for name, section in self.sections.items():
            wrong = [slot for slot in _SLOT.findall(section.line) if slot != "value"]
            problems += [f"sections.{name}.line: unknown slot {{{slot}}}; use {{value}}" for slot in wrong]
            if not section.line.endswith(f" {_VALUE}") or section.line.count(_VALUE) > 1:
                problems.append(f"sections.{name}.line: missing slot {{value}} at the end, behind a blank")
            if not section.join.endswith(" "):
                problems.append(f"sections.{name}.join: {section.join!r} must end in a blank")
        return problems

    def _budget_problems(self) -> list[str]:
        problems = [f"budgets: missing {name!r}" for name in get_args(BudgetName) if name not in self.budgets]
        return problems + [
            f"budgets.{name}.sections: unknown {section!r}; {nearest(section, ITEM_SECTIONS)}"
            for name, budget in self.budgets.items()
            for section in budget.sections
            if section not in ITEM_SECTIONS
        ]

    def frame(self, rules: str = "") -> tuple[str, str]:
        """What stands before and behind the pair, given the text of the ``rules`` section."""
        said = {
            "pair": "{pair}",
            "rules": rules,
            "levels": "\n".join(f"{label}: {text}" for label, text in self.levels.items()),
            "dimensions": ", ".join(DIMENSIONS.values()),
        }
        blocks = [block for block in self.blocks if rules or block != "{rules}"]
        before, _, behind = self.separator.join(blocks).partition("{pair}")
        return _fill(before, said), _fill(behind, said)


def _fill(text: str, said: dict[str, str]) -> str:
    return _SLOT.sub(lambda slot: said[slot[1]], text)


@functools.cache
def load_template(name: str = "nano") -> Template:
    """A bundled template: ``nano`` (bare, for lore-nano), ``en`` or ``zh`` (instructions, for larger models).

    Raises:
        ConfigError: no such template, or its file is not sound.
    """
    known = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            f"no template {name!r}; {nearest(name, known)}, or read your own with read_template"
        )
    return read_template(_FOLDER / f"{name}.yaml")


def read_template(path: Path) -> Template:
    """Read and check a template file.

    Raises:
        ConfigError: every problem of the file, each with its field and, where one is meant, its slot.
    """
    try:
        return Template.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"template {path}: not readable as YAML in UTF-8: {error}") from error
    except ValidationError as error:
        found = [
            (".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, "))
            for item in error.errors()
        ]
        lines = [f"{where}: {message}" if where else message for where, message in found]
        raise ConfigError(f"template {path}: " + "; ".join(lines)) from error
