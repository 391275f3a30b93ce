"""A team's own vertical: start one from a template, find it, and list all that is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lore_lib.artifacts import atomic_write_text, read_jsonl, read_parquet
from lore_lib.errors import ArtifactError, DataError, nearest
from lore_lib.vertical.definition import Vertical, verticals_folder
from lore_lib.vertical.schema import DIMENSIONS
from lore_lib.vertical.source import Checked, Problem, check
from lore_lib.vertical.tables import COLUMNS, KEYS, check_tables

FILE = "vertical.yaml"
TEMPLATE = Path(__file__).with_name("template.yaml")
TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")


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
        known = sorted(file.parent.name for file in verticals_folder().glob(f"*/{FILE}"))
        raise DataError(
            f"no file {path_or_name!r} and no vertical of that name under {verticals_folder()}; "
            f"{nearest(path_or_name, known)}"
        )
    return named.relative_to(Path.cwd()) if named.is_relative_to(Path.cwd()) else named


def validate(path: Path) -> Checked[Vertical]:
    """Check a vertical file and the tables beside it; loads no model."""
    checked = check(path, Vertical)
    problems = [*checked.problems, *_table_problems(path.parent)]
    return Checked(None if problems else checked.value, problems, checked.complete)


def counts(vertical: Vertical) -> dict[str, int]:
    """How much a vertical knows, for the line that says it is well."""
    return {
        "industries": len(set(vertical.industry_of.values())),
        "categories": len(vertical.group_of),
        "dimensions": sum(bool(vertical.values(dimension)) for dimension in DIMENSIONS),
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
    if problems := check(template, Vertical).problems:
        raise DataError(f"{len(problems)} problem(s) in {template}, the first at {problems[0]}")
    text, replaced = re.subn(
        r"^name:.*$", f"name: {name}", template.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE
    )
    if not replaced:
        raise DataError(f"no line of {template} begins with 'name:'; write the name on a line of its own")
    return atomic_write_text(path, text)


def _table_problems(folder: Path) -> list[Problem]:
    """What is wrong with the tables in a folder; nothing when it has none, as they are generated then."""
    beside = {
        name: [path for suffix in TABLE_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
        for name in COLUMNS
    }
    if not any(beside.values()):
        return []
    problems: list[Problem] = []
    tables: dict[str, pd.DataFrame] = {}
    for name, paths in beside.items():
        if len(paths) != 1:
            found = ", ".join(path.name for path in paths)
            message = (
                "keep one file for a table" if paths else "this table is missing; all four belong together"
            )
            problems.append(Problem(str(folder / name), 1, name, found, message))
            continue
        try:
            tables[name] = _read_table(paths[0])
        except (ArtifactError, ValueError, OSError, RecursionError) as error:
            problems.append(Problem(str(paths[0]), 1, name, "", f"cannot be read: {error}"))
            continue
        problems += _nested_cells(tables[name], name, paths[0])
    if not problems:
        try:
            check_tables(tables, folder)
        except DataError as error:
            places = {name: paths[0] for name, paths in beside.items()}
            problems = list(_placed(error, tables, places))
    return sorted(problems)


def _read_table(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".jsonl":
        return pd.DataFrame(read_jsonl(path))
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _nested_cells(table: pd.DataFrame, name: str, path: Path) -> Iterator[Problem]:
    """Cells that hold a list or an object, which no column may."""
    for column in table.columns:
        if table[column].dtype != object:
            continue
        for row, cell in enumerate(table[column], start=1):
            if isinstance(cell, list | dict | np.ndarray):
                kind = "an object" if isinstance(cell, dict) else "a list"
                message = f"row {row} holds {kind}; write it as JSON text"
                yield Problem(str(path), _line(path, row), f"{name}.{column}", "", message)
                break


def _placed(error: DataError, tables: dict[str, pd.DataFrame], places: dict[str, Path]) -> Iterator[Problem]:
    """Each problem that ``check_tables`` listed, with the row of the first key that it names."""
    for part in str(error).partition(" problem(s): ")[2].split(" | "):
        name, _, message = part.partition(": ")
        if name not in places:  # a cell's own " | "
            name, message = "pairs", part
        row = 0
        quoted = re.search(r"first (?:item )?'([^']*)'", message)
        if quoted and (key := KEYS.get(name)):
            rows = [row for row, cell in enumerate(tables[name][key], start=1) if str(cell) == quoted[1]]
            row = rows[-1] if rows else 0
        where = f"row {row}: " if row else ""
        yield Problem(str(places[name]), _line(places[name], row), name, "", where + message)


def _line(path: Path, row: int) -> int:
    """Where an editor shows a row: a CSV file has its header above."""
    return row + 1 if path.suffix == ".csv" else max(row, 1)
