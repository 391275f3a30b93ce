"""`lore validate` and `lore init-vertical`: what a team meets when it writes its own vertical."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from lore_lib.artifacts import project_root, write_parquet
from lore_lib.cli import commands
from lore_lib.errors import DataError
from lore_lib.vertical.authoring import TEMPLATE, find_vertical, init_vertical, validate
from lore_lib.vertical.definition import read_vertical
from lore_lib.vertical.world import generate_tables

Tables = dict[str, pd.DataFrame]
BUNDLED = "data/verticals/apparel_home/vertical.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own that holds the rules and a bundled vertical; returns that vertical's folder."""
    home = tmp_path / "data" / "verticals" / "apparel_home"
    shutil.copytree(project_root() / "data" / "rules", tmp_path / "data" / "rules")
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
        counted = "industries 3, categories 28, dimensions 8, rules 94, own rules 0, lexicon entries 32"
        assert result.stdout.rstrip().endswith(counted)
    assert lore("validate").stdout.startswith("OK data/verticals/apparel_home/vertical.yaml: ")


def test_every_problem_is_one_line_that_an_editor_can_click(folder: Path) -> None:
    path = folder / "vertical.yaml"
    text = path.read_text(encoding="utf-8")
    changes = {
        "      red: {crimson:": "      red: {navy: [16, 24, 88], crimson:",
        "  question_share: 0.06": "  question_share: a few",
        "  klein: {intent: DJ, means: {color:": "  klein: {intent: DJ, means: {colour:",
    }
    for old, new in changes.items():
        assert text.count(old) == 1
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    red, share, klein = (text[: text.index(old)].count("\n") + 1 for old in changes)
    result = lore("validate", "apparel_home")
    assert result.exit_code == 1
    file = "data/verticals/apparel_home/vertical.yaml"
    assert result.stdout.splitlines() == [
        f"{file}:{red}: dimensions.color.families.red.navy: 'navy' stands in two places; keep one",
        f"{file}:{share}: world.question_share: should be a valid number, "
        "unable to parse string as a number (found a few)",
        f"{file}:{klein}: lexicon.klein.means.colour: unknown dimension 'colour'; did you mean 'color'?",
        f"{file}: 3 problems",
    ]


def test_an_unknown_name_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no file 'aparel_home'.*did you mean 'apparel_home'"):
        find_vertical("aparel_home")
    result = lore("validate", "nowhere/vertical.yaml")
    assert result.exit_code == 1
    assert result.stdout.startswith("nowhere/vertical.yaml:1: no such file\n")


def write_tables(tables: Tables, folder: Path) -> None:
    for name, table in tables.items():
        write_parquet(table, folder / f"{name}.parquet")


def test_tables_beside_the_file_are_checked_and_rows_named_by_number(
    folder: Path, world_tables: Tables
) -> None:
    write_tables(world_tables, folder)
    assert lore("validate").exit_code == 0
    broken = world_tables["pairs"].copy()
    broken.loc[2, "label"] = "L5"
    broken.loc[6, "pair_id"] = broken.loc[5, "pair_id"]
    write_tables({"pairs": broken}, folder)
    shown = lore("validate").stdout.splitlines()
    at = "data/verticals/apparel_home/pairs.parquet"
    assert shown[0].startswith(f"{at}:3: pairs: row 3: 1 rows with an unknown label, first 'train-p00000-2'")
    assert shown[1].startswith(f"{at}:7: pairs: row 7: 1 repeated pair_id")
    assert shown[2:] == ["data/verticals/apparel_home/vertical.yaml: 2 problems"]


def test_damaged_missing_and_foreign_tables_are_all_named(folder: Path, world_tables: Tables) -> None:
    (folder / "items.parquet").write_bytes(b"PAR1 cut off")
    write_tables({"queries": pd.DataFrame({"query_id": ["a"], "query": [["red", "dress"]]})}, folder)
    world_tables["pairs"].to_csv(folder / "pairs.csv")
    told = [str(problem) for problem in validate(folder / "vertical.yaml").problems]
    assert len(told) == 4
    for problem, part in zip(
        told,
        ("clicks.parquet:1: clicks: this table is missing; all four belong together, as Parquet",
         "items.parquet:1: items: cannot be read",
         "adapters.plain makes them of other files) (found pairs.csv)",
         "queries.parquet:1: queries.query: row 1 holds a list; write it as JSON text"),
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


def test_the_schema_is_json_schema_and_describes_every_field_of_the_file() -> None:
    result = lore("validate", "--schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert set(schema["required"]) == {"name", "title", "dimensions"}
    assert {"Taxonomy", "Flags", "Rule", "Example", "Slang", "WorldSpec"} <= set(schema["$defs"])
    for place in (schema, *schema["$defs"].values()):
        assert place["description"]
        assert [name for name, field in place["properties"].items() if not field.get("description")] == []


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
    with pytest.raises(DataError, match=r"1 problem; more may show .*\n  .*vertical\.yaml:1: not UTF-8"):
        init_vertical("garden_tools", "apparel_home")
    assert not (folder.parent / "garden_tools").exists()
