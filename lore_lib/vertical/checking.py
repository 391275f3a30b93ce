"""A YAML file checked against a pydantic model: every problem at once, in the words and lines of the file."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from lore_lib.errors import DataError, nearest, problem_count
from lore_lib.vertical.source import Contradictions, Diagnostic, Location, Node, Problem, dotted, read_source

M = TypeVar("M", bound=BaseModel)

_QUOTED = re.compile(r"'([^']*)'")


@dataclass(frozen=True)
class Checked(Generic[M]):
    """What became of a file.

    Attributes:
        value: the model; None where there are problems.
        problems: sorted by line.
        complete: False where values are so wrong that contradictions could not be looked for.
    """

    value: M | None
    problems: list[Diagnostic]
    complete: bool

    @property
    def summary(self) -> str:
        """How many problems there are, and whether more may show."""
        count = problem_count(len(self.problems))
        return count if self.complete else f"{count}; more may show once these are mended"


def check(path: Path, model: type[M]) -> Checked[M]:
    """Read a YAML file and validate it; all problems come at once, sorted by line.

    A model's own validator runs only when every field is well. So what is wrong is taken out, a lost number
    or text at the top gets a stand-in, and the rest is validated again. What a validator then says about a
    word that was taken out, or about a stand-in, is not reported: it would most likely follow from that.
    """
    source = read_source(path)
    if source.root is None:
        return Checked(None, source.problems, complete=False)
    root, problems, removed = source.root, set(source.problems), set(source.broken)
    words, stand_ins, complete = root.remove(removed), set[str](), True
    while True:
        try:
            value = model.model_validate(root.plain)
        except ValidationError as error:
            wrong: set[Location] = set()
            details = [(_where(root, detail), detail) for detail in error.errors(include_url=False)]
            above = {at[:n] for at, _ in details for n in range(len(at))}
            for at, detail in details:
                if at in above and detail["type"].endswith("_type"):
                    continue  # a member of a union that the value was not meant for: another one went deeper
                node, own = root.locate(detail["loc"]), detail["type"] == "value_error"
                missing = detail["type"] == "missing"
                if at[:1] and at[0] in stand_ins:  # it was no good
                    wrong.add(())
                    complete = False
                    continue
                told = [] if at in removed else list(_explain(detail, root, model, str(path)))
                sure = [p for p in told if not own or _is_sure(p, words, stand_ins)]
                problems.update(sure)
                complete &= len(sure) == len(told)
                complete &= not own or getattr(detail["ctx"]["error"], "complete", True)
                if missing and not node.path and (stand_in := _stand_in(model, at)):
                    root.value[at[0]] = stand_in
                    stand_ins.add(str(at[0]))
                    continue
                wrong.add(node.path)
                complete &= own or bool(node.path)
            if () in wrong:
                return Checked(None, sorted(problems), complete)
            words |= root.remove(wrong)
            removed |= wrong
        else:
            return Checked(None if problems else value, sorted(problems), complete)


def load(path: Path, model: type[M]) -> M:
    """The model that a YAML file holds.

    Raises:
        DataError: every problem of the file, one a line.
    """
    checked = check(path, model)
    if checked.value is None:
        lines = "".join(f"\n  {problem}" for problem in checked.problems)
        raise DataError(f"{path}: {checked.summary}:{lines}")
    return checked.value


def _where(root: Node, detail: Mapping[str, Any]) -> Location:
    """Where in the file the value stands that an error is about, or would stand if it were there."""
    path = root.locate(detail["loc"]).path
    return (*path, detail["loc"][-1]) if detail["type"] == "missing" else path


def _is_sure(problem: Diagnostic, words: set[str], stand_ins: set[str]) -> bool:
    return not words & _quoted(problem.message) and problem.field.partition(".")[0] not in stand_ins


def _explain(
    detail: Mapping[str, Any], root: Node, model: type[BaseModel], file: str
) -> Iterator[Diagnostic]:
    """One pydantic error in the words of the file; a model's own validator may tell several at once."""
    location, kind = detail["loc"], detail["type"]
    node = root.locate(location)
    found = node.found
    message = detail["msg"].removeprefix("Input ")
    if kind == "value_error":
        error = detail["ctx"]["error"]
        own = [Problem((), str(error))] if not isinstance(error, Contradictions) else error.problems
        for path, text in own:
            exact = _sharpen(root.locate((*location, *path)), text)
            yield Diagnostic(file, exact.line, dotted(exact.path), "", text)
        return
    where = node.path
    if kind == "missing":
        where, found, message = (*where, location[-1]), "", "this field is missing"
    elif kind == "extra_forbidden":
        name, known = str(location[-1]), _known_fields(model, location[:-1])
        found, message = "", f"unknown field; {nearest(name, known)}" if known else "unknown field"
    elif location and location[-1] == "[key]":
        found, message = str(where[-1]), f"the key {message}"
    elif kind == "union_tag_invalid":
        node = _sharpen(node, message)
        where, found = node.path, node.text
        message = f"unknown kind; {nearest(found, sorted(_quoted(detail['ctx']['expected_tags'])))}"
    elif kind == "union_tag_not_found":
        message = f"field {detail['ctx']['discriminator']}, which says what this is, is missing"
    elif kind in ("model_type", "dict_type"):
        message = "should be a mapping, 'field: value' line by line"
    if kind == "string_type" and found not in ("", "nothing") and not isinstance(node.value, dict | list):
        message += "; write it in quotes"
    elif kind in ("literal_error", "enum") and (words := _quoted(detail["ctx"]["expected"])):
        message += f"; {nearest(found, sorted(words))}"
    yield Diagnostic(file, node.line, dotted(where), found, message)


def _sharpen(node: Node, message: str) -> Node:
    """The last place below ``node`` of the first word that the message quotes; ``node`` if there is none."""
    quoted = _QUOTED.search(message)
    if not quoted or not quoted[1]:
        return node
    places = [
        below
        for below in node.walk()
        if quoted[1] == below.text or (below.path and quoted[1] == str(below.path[-1]))
    ]
    return places[-1] if places else node


@functools.cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _known_fields(model: type[BaseModel], location: Location) -> list[str]:
    """Names of the fields that a model has at a location."""
    return [name for place in _places(_schema(model), location) for name in place.get("properties", {})]


def _stand_in(model: type[BaseModel], path: Location) -> Node | None:
    """A value for a field of numbers and texts, which no other field names; None for any other field."""
    for place in _places(_schema(model), path):
        if place.get("type") in ("integer", "number"):
            return Node(path, 1, "", place.get("minimum", 1))
        if place.get("type") == "string":
            return Node(path, 1, "", "x")
        if len(path) == 1 and (names := place.get("required", ())):
            children = {name: _stand_in(model, (*path, name)) for name in names}
            if all(children.values()):
                return Node(path, 1, "", children)
    return None


def _places(schema: dict[str, Any], location: Location) -> list[dict[str, Any]]:
    """What a JSON Schema says of a location: one place, or each member of a union."""
    places = _alternatives(schema, schema)
    for part in location:
        below = [child for place in places for child in _below(place, part)]
        places = [child for place in below for child in _alternatives(place, schema)] or places
    return places


def _below(place: dict[str, Any], part: str | int) -> list[dict[str, Any]]:
    if isinstance(part, int):
        prefix = place.get("prefixItems", [])
        children = [prefix[part]] if part < len(prefix) else [place.get("items")]
    else:
        kinds = place.get("discriminator", {}).get("mapping", {})
        kind = {"$ref": kinds[part]} if part in kinds else place.get("additionalProperties")
        children = [place.get("properties", {}).get(part, kind)]
    return [child for child in children if isinstance(child, dict)]


def _alternatives(place: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A place of a schema with its reference followed, and each member of its unions."""
    if "$ref" in place:
        return _alternatives(schema["$defs"][place["$ref"].rpartition("/")[2]], schema)
    members = [*place.get("anyOf", ()), *place.get("oneOf", ()), *place.get("allOf", ())]
    return [place, *(deeper for member in members for deeper in _alternatives(member, schema))]


def _quoted(message: str) -> set[str]:
    return set(_QUOTED.findall(message))
