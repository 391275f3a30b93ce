"""A team's own vertical: start one from a template, find it, and list all that is wrong with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lore_lib.artifacts import atomic_write_text, read_parquet
from lore_lib.errors import ArtifactError, DataError, nearest
from lore_lib.vertical.adapters.rows import Problems, ReadReport
from lore_lib.vertical.checking import Checked, check
from lore_lib.vertical.definition import Vertical, read_vertical, vertical_names, verticals_folder
from lore_lib.vertical.mapping import OwnTables
from lore_lib.vertical.source import Diagnostic, Node, read_source

FILE = "vertical.yaml"
TEMPLATE = Path(__file__).with_name("template.yaml")


def find_vertical(path_or_name: str) -> Path:
    """The vertical file that a user means: a file, a folder that holds one, or a name.

    Raises:
        DataError: it is neither a path nor the name of a vertical; names the nearest.
    """
    path = Path(path_or_name)
    if path.is_dir():
        path /= FILE
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    named = verticals_folder() / path_or_name / FILE
    if not named.is_file():
        raise DataError(
            f"no file {path_or_name!r} and no vertical of that name under {verticals_folder()}; "
            f"{nearest(path_or_name, vertical_names())}"
        )
    return named.relative_to(Path.cwd()) if named.is_relative_to(Path.cwd()) else named


def validate(path: Path, report: ReadReport | None = None) -> Checked[Vertical]:
    """Check a vertical file and its tables; loads no model.

    Args:
        path: the file.
        report: takes what reading its own tables leaves out, cuts or changes by choice.
    """
    checked, root = check(path, Vertical), read_source(path).root
    if root is None:
        return checked
    section, complete = root.child("tables"), checked.complete
    if section is None or section.value is None:
        found = _parquet_problems(path.parent)
        if found is None and checked.value and checked.value.world is None:
            said = "neither 'world' nor 'tables', and no Parquet tables beside the file; give one of them"
            found = [Diagnostic(str(path), 1, "", "", said)]
    elif any(_is_under("tables", problem.field) for problem in checked.problems):
        found, complete = [], False  # it is not known yet what the files should hold
    else:
        report = ReadReport() if report is None else report
        found = list(_own_problems(path, OwnTables.model_validate(section.plain), section, report))
    problems = [*checked.problems, *(found or [])]
    problems.sort(key=lambda problem: (problem.file != str(path), problem.file, problem.line))
    return Checked(None if problems else checked.value, problems, complete)


def counts(vertical: Vertical) -> dict[str, int]:
    """How much a vertical knows, for the line that says it is well."""
    return {
        "industries": len(vertical.taxonomy.industries),
        "categories": len(vertical.group_of),
        "dimensions": len(vertical.dimensions),
        "rules": len(vertical.rulebook.rules),
        "own rules": len(vertical.rules),
        "lexicon entries": len(vertical.lexicon),
    }


def json_schema() -> str:
    """The JSON Schema of a vertical file, for editors that complete and check as one types."""
    return json.dumps(Vertical.model_json_schema(), indent=2, ensure_ascii=False)


def init_vertical(name: str, source: str = "") -> Path:
    """Write ``data/verticals/<name>/vertical.yaml`` from the template, or as a copy of another vertical.

    Raises:
        DataError: a name that is no folder name, a vertical that is there already, a ``source`` that is
            unknown or has problems of its own.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise DataError(
            f"{name!r} cannot name a vertical; use small letters, digits and _, such as 'garden_tools'"
        )
    path = verticals_folder() / name / FILE
    if path.exists():
        raise DataError(f"{path} is there already and is left as it is; choose another name or remove it")
    template = find_vertical(source) if source else TEMPLATE
    read_vertical(template)
    text, replaced = re.subn(
        r"^name:.*$", f"name: {name}", template.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE
    )
    if not replaced:
        raise DataError(f"no line of {template} begins with 'name:'; write the name on a line of its own")
    return atomic_write_text(path, text)


def _is_under(section: str, field: str) -> bool:
    return field == section or field.startswith((f"{section}.", f"{section}["))


def _own_problems(path: Path, own: OwnTables, section: Node, report: ReadReport) -> Iterator[Diagnostic]:
    """What is wrong with the files that the section ``tables`` names."""
    from lore_lib.vertical.adapters import plain

    problems = Problems(path.parent)
    plain.collect(path.parent, own, problems, report)
    for file, row, column, text in problems:
        there = path.parent / file
        if row or (there.is_file() and not column):
            yield Diagnostic(str(there), max(row, 1), column, "", text)
        else:
            node = _naming(section, file, column)
            yield Diagnostic(str(path), node.line, ".".join(map(str, node.path)), "", f"{file}: {text}")


def _naming(section: Node, file: str, column: str) -> Node:
    """Where the section names a file, or a column of it."""
    for table in section.value.values():
        name = table.locate(("file",))
        if name.value == file:
            places = table.locate(("columns",)).walk() if column else [name]
            return next((node for node in places if node.value == (column or file)), section)
    return section


def _parquet_problems(folder: Path) -> list[Diagnostic] | None:
    """What is wrong with the tables of a folder; None when it has none, as they are generated then."""
    from lore_lib.vertical.contract import COLUMNS, table_problems

    beside = {name: sorted(path.name for path in folder.glob(f"{name}.*")) for name in COLUMNS}
    if not any(beside.values()):
        return None
    paths = {name: folder / f"{name}.parquet" for name in COLUMNS}
    problems: list[Diagnostic] = []
    tables: dict[str, pd.DataFrame] = {}
    for name, path in paths.items():
        if path.name not in beside[name]:
            said = "this table is missing; all four belong together, as Parquet"
            said += "; files of another form are named in the section 'tables'" if beside[name] else ""
            problems.append(Diagnostic(str(path), 1, name, ", ".join(beside[name]), said))
            continue
        try:
            tables[name] = read_parquet(path)
        except ArtifactError as error:
            problems.append(Diagnostic(str(path), 1, name, "", f"cannot be read: {error}"))
            continue
        problems += _nested_cells(tables[name], name, path)
    if not problems:
        told = table_problems(tables)
        told += (
            [] if any(said.startswith("items:") for said in told) else _unreadable_pictures(tables["items"])
        )
        problems = [_placed(said, tables, paths) for said in told]
    return sorted(problems)


def _unreadable_pictures(items: pd.DataFrame) -> list[str]:
    """Pictures that begin as such and cannot be read to their end."""
    from lore_lib.vertical.adapters.pictures import verify_picture

    told = {
        item_id: reason
        for item_id, data in zip(items["item_id"], items["picture"], strict=True)
        if data and (reason := verify_picture(data)[1])
    }
    counted = Counter(told.values())
    first = {reason: item_id for item_id, reason in reversed(told.items())}
    return [f"items: {rows} x {reason}, first item {first[reason]!r}" for reason, rows in counted.items()]


def _nested_cells(table: pd.DataFrame, name: str, path: Path) -> Iterator[Diagnostic]:
    """Cells that hold a list or an object, which no column may."""
    for column in table.columns:
        if table[column].dtype != object:
            continue
        for row, cell in enumerate(table[column], start=1):
            if isinstance(cell, list | dict | np.ndarray):
                kind = "an object" if isinstance(cell, dict) else "a list"
                said = f"row {row} holds {kind}; write it as JSON text"
                yield Diagnostic(str(path), row, f"{name}.{column}", "", said)
                break


def _placed(said: str, tables: dict[str, pd.DataFrame], paths: dict[str, Path]) -> Diagnostic:
    """A problem of the tables, with the row of the first key that it names."""
    from lore_lib.vertical.contract import KEYS

    name, _, message = said.partition(": ")
    row = 0
    quoted = re.search(r"first (?:item )?'([^']*)'", message)
    if quoted and (key := KEYS.get(name)):
        rows = [row for row, cell in enumerate(tables[name][key], start=1) if str(cell) == quoted[1]]
        row = rows[-1] if rows else 0
    where = f"row {row}: " if row else ""
    return Diagnostic(str(paths[name]), max(row, 1), name, "", where + message)
