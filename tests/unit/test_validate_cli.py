"""`lore validate` and `lore init-vertical`: what a team meets when it writes its own vertical."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from lore_lib.artifacts import project_root, write_jsonl, write_parquet
from lore_lib.cli import commands
from lore_lib.errors import DataError
from lore_lib.vertical.authoring import TEMPLATE, find_vertical, init_vertical, validate
from lore_lib.vertical.definition import read_vertical
from lore_lib.vertical.world import generate_tables

Tables = dict[str, pd.DataFrame]
BUNDLED = "data/verticals/apparel_home/vertical.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own that holds the bundled vertical; returns that vertical's folder."""
    home = tmp_path / "data" / "verticals" / "apparel_home"
    home.mkdir(parents=True)
    shutil.copy(project_root() / BUNDLED, home)
    monkeypatch.setenv("LORE_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return home


def lore(*arguments: str) -> Result:
    return CliRunner().invoke(commands, arguments)


def test_the_bundled_vertical_is_well_and_is_counted(folder: Path) -> None:
    for given in ("apparel_home", str(folder), str(folder / "vertical.yaml")):
        result = lore("validate", given)
        assert result.exit_code == 0, result.output
        assert "3 industries, 28 categories, 7 dimensions, 32 lexicon entries" in result.stdout
    assert lore("validate").stdout.startswith("OK data/verticals/apparel_home/vertical.yaml: ")


def test_every_problem_is_one_line_that_an_editor_can_click(folder: Path) -> None:
    path = folder / "vertical.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("  red: {crimson:", "  red: {navy: [16, 24, 88], crimson:")
        .replace("price_tolerance: 0.10", "price_tolerance: a tenth")
        .replace("klein: {intent: DJ, means: {color:", "klein: {intent: DJ, means: {colour:"),
        encoding="utf-8",
    )

    def line(start: str) -> int:
        return next(n for n, row in enumerate(text.splitlines(), start=1) if row.startswith(start))

    result = lore("validate", "apparel_home")
    assert result.exit_code == 1
    file = "data/verticals/apparel_home/vertical.yaml"
    assert result.stdout.splitlines() == [
        f"{file}:{line('  red:')}: colors.red.navy: 'navy' stands in two places; keep one",
        f"{file}:{line('price_tolerance')}: price_tolerance: should be a valid number, "
        "unable to parse string as a number (found a tenth)",
        f"{file}:{line('  klein')}: lexicon.klein.means.colour: "
        "unknown dimension 'colour'; did you mean 'color'?",
        f"3 problem(s) in {file}",
    ]


def test_contradictions_of_the_bundled_format_are_told_apart(folder: Path) -> None:
    path = folder / "vertical.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("linen: ramie, ramie", "linen: rami, ramie")
        .replace("Relo: Aurelo", "Relo: Aurela")
        .replace("[[dress, gown]", "[[dress, gwon]")
        .replace("kids: [teens, baby]", "kids: [tens, baby]")
        .replace("{color: mint}", "{color: mintt}"),
        encoding="utf-8",
    )
    told = {(p.field, p.message.partition(";")[0]) for p in validate(path).problems}
    assert told == {
        ("near_categories[0][1]", "unknown category 'gwon'"),
        ("materials.linen", "unknown kin 'rami'"),
        ("audiences.kids[0]", "unknown audience 'tens'"),
        ("brands.Relo", "unknown parent 'Aurela'"),
        ("lexicon.matcha.means.color", "color 'mintt' is unknown"),
    }


def test_an_unknown_name_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no file 'aparel_home'.*did you mean 'apparel_home'"):
        find_vertical("aparel_home")
    result = lore("validate", "nowhere/vertical.yaml")
    assert result.exit_code == 1
    assert result.stdout.startswith("nowhere/vertical.yaml:1: no such file\n")


def write_tables(tables: Tables, folder: Path, suffix: str) -> None:
    for name, table in tables.items():
        path = folder / f"{name}{suffix}"
        plain = table.drop(columns="picture").assign(picture="") if name == "items" else table
        if suffix == ".parquet":
            write_parquet(table, path)
        elif suffix == ".csv":
            plain.to_csv(path, index=False)
        else:
            write_jsonl(path, plain.to_dict("records"))


@pytest.mark.parametrize(("suffix", "line"), [(".parquet", 3), (".csv", 4), (".jsonl", 3)])
def test_tables_beside_the_file_are_checked_and_rows_named_by_number(
    folder: Path, world_tables: Tables, suffix: str, line: int
) -> None:
    write_tables(world_tables, folder, suffix)
    assert lore("validate").exit_code == 0
    broken = world_tables["pairs"].copy()
    broken.loc[2, "label"] = "L5"
    broken.loc[6, "pair_id"] = broken.loc[5, "pair_id"]
    write_tables({"pairs": broken}, folder, suffix)
    shown = lore("validate").stdout
    at = f"data/verticals/apparel_home/pairs{suffix}"
    assert f"{at}:{line}: pairs: row 3: 1 rows with an unknown label, first 'train-p00000-2'" in shown
    assert f"{at}:{line + 4}: pairs: row 7: 1 repeated pair_id" in shown
    assert "2 problem(s)" in shown


def test_damaged_missing_and_double_tables_are_all_named(folder: Path, world_tables: Tables) -> None:
    (folder / "items.parquet").write_bytes(b"PAR1 cut off")
    (folder / "queries.jsonl").write_text('{"query_id": "a", "query": ["red", "dress"]}\n')
    write_tables({"pairs": world_tables["pairs"]}, folder, ".csv")
    write_tables({"pairs": world_tables["pairs"]}, folder, ".parquet")
    told = [str(problem) for problem in validate(folder / "vertical.yaml").problems]
    assert len(told) == 4
    for problem, part in zip(
        told,
        ("clicks: this table is missing", "items.parquet:1: items: cannot be read",
         "pairs: keep one file for a table (found pairs.parquet, pairs.csv)",
         "queries.jsonl:1: queries.query: row 1 holds a list; write it as JSON text"),
        strict=True,
    ):  # fmt: skip
        assert part in problem


def test_validation_needs_no_model() -> None:
    script = (
        "import sys; from lore_lib.cli import commands\n"
        "commands(['validate', 'apparel_home'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_schema_is_json_schema_and_names_every_field_of_the_file() -> None:
    result = lore("validate", "--schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert set(schema["required"]) <= set(schema["properties"])
    assert {"name", "industries", "lexicon"} <= set(schema["properties"])


def test_the_template_is_valid_and_a_world_can_be_made_of_it() -> None:
    assert [str(problem) for problem in validate(TEMPLATE).problems] == []
    tables = generate_tables(read_vertical(TEMPLATE), {"train": 6, "dev": 2, "test": 2}, 4, 1, 17)
    assert len(tables["pairs"]) == 40
    assert set(tables["pairs"].label) == {"L1", "L2", "L3", "L4"}


@pytest.mark.parametrize("source", ["", "apparel_home"])
def test_a_new_vertical_is_valid_carries_its_name_and_is_never_overwritten(folder: Path, source: str) -> None:
    result = lore("init-vertical", "garden_tools", *(["--from", source] if source else []))
    assert result.exit_code == 0, result.output
    path = folder.parent / "garden_tools" / "vertical.yaml"
    assert str(path) in result.stdout
    assert "lore validate garden_tools" in result.stdout
    assert lore("validate", "garden_tools").exit_code == 0
    assert read_vertical(path).name == "garden_tools"
    original = folder / "vertical.yaml" if source else TEMPLATE
    changed = zip(path.read_text().splitlines(), original.read_text().splitlines(), strict=True)
    assert [new for new, old in changed if new != old] == ["name: garden_tools"]
    path.write_text("mine")
    with pytest.raises(DataError, match="is there already and is left as it is"):
        init_vertical("garden_tools")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Garden", "1st", "a b", "ключ", "a\n"])
def test_a_name_that_is_no_folder_name_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot name a vertical"):
        init_vertical(name)
    assert [path.name for path in folder.parent.iterdir()] == ["apparel_home"]


def test_a_vertical_with_problems_is_not_copied(folder: Path) -> None:
    (folder / "vertical.yaml").write_bytes(b"name: \xff")
    with pytest.raises(DataError, match=r"1 problem\(s\) in .*vertical\.yaml:1: not UTF-8"):
        init_vertical("garden_tools", "apparel_home")
    assert not (folder.parent / "garden_tools").exists()
