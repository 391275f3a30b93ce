"""`lore validate` and `lore init-vertical`: what a team meets when it writes its own vertical."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from lore_lib.artifacts import project_root, write_parquet
from lore_lib.cli import commands
from lore_lib.config import WorldConfig
from lore_lib.errors import DataError
from lore_lib.vertical.adapters import plain
from lore_lib.vertical.adapters.rows import ReadReport
from lore_lib.vertical.authoring import TEMPLATE, find_vertical, init_vertical, validate
from lore_lib.vertical.definition import load_vertical, read_vertical
from lore_lib.vertical.mapping import OwnTables
from lore_lib.vertical.tables import load_tables
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


def test_a_picture_that_breaks_off_is_named_with_its_row(folder: Path, world_tables: Tables) -> None:
    items = world_tables["items"].copy()
    items.loc[[4, 9], "picture"] = [items.picture[4][:60], items.picture[9][:-9]]
    write_tables(world_tables | {"items": items}, folder)
    (problem,) = validate(folder / "vertical.yaml").problems
    assert "items.parquet:5: items: row 5: 2 x picture cannot be read as PNG or JPEG" in str(problem)


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
         "files of another form are named in the section 'tables' (found pairs.csv)",
         "queries.parquet:1: queries.query: row 1 holds a list; write it as JSON text"),
        strict=True,
    ):  # fmt: skip
        assert part in problem


OWN = """
tables:
  items:
    file: catalogue.csv
    columns:
      item_id: sku
      title: name
      price: eur
      cpv: {color: shade, material: stuff}
  pairs:
    file: judged.jsonl
    columns: {query: search, item_id: sku, label: grade}
    labels: {3: L4, 2: L3, 1: L2, 0: L1, "?": skip}
"""
CATALOGUE = "sku,name,eur,shade,stuff\n7,frying pan,24.50,navy,steel\n8,wok,31,,iron\n9,bowl,6,coral,\n"
JUDGED = [("steel pan", 7, 3), ("steel pan", 8, 2), ("steel pan", 9, 0), ("blue wok", 8, "?")]


@pytest.fixture
def shop(folder: Path) -> Path:
    """The folder of a vertical with tables of its own and no world."""
    home = init_vertical("shop").parent
    text = (home / "vertical.yaml").read_text(encoding="utf-8")
    start, end = text.index("# Tables of your own: "), text.index("# What shoppers write")
    (home / "vertical.yaml").write_text(text[:start] + text[end:] + OWN, encoding="utf-8")
    (home / "catalogue.csv").write_text(CATALOGUE, encoding="utf-8")
    rows = [dict(zip(("search", "sku", "grade"), row, strict=True)) for row in JUDGED]
    (home / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return home


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def line_of(path: Path, part: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, start=1) if part in line)


def test_own_tables_need_no_world_and_what_they_skip_is_counted_and_listed(
    shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(shop / "catalogue.csv", ("frying pan", "pan " * 600))
    result = lore("validate", "shop")
    assert result.exit_code == 0, result.output
    skipped, cut = "grade '?' is skipped", "name cut to 2000 characters"
    assert (
        f"by choice: catalogue.csv:2: name: {cut}\nby choice: judged.jsonl:4: grade: {skipped}"
        in result.output
    )
    assert f"1 x {skipped} (judged.jsonl:4)" in result.output
    report = ReadReport()
    tables = load_tables(load_vertical("shop"), WorldConfig(), 17, report)
    assert tables["pairs"].label.tolist() == ["L4", "L3", "L1"]
    assert json.loads(tables["items"].cpv[0]) == {"color": "navy", "material": "steel"}
    assert tables["queries"]["query"].tolist() == ["steel pan"]
    assert f"1 x {skipped} (judged.jsonl:4)" in caplog.text
    assert report.list_table().to_dict("records") == [
        {"where": "catalogue.csv:2", "field": "name", "reason": cut, "rows": 1},
        {"where": "judged.jsonl:4", "field": "grade", "reason": skipped, "rows": 1},
    ]


def test_every_problem_of_own_files_and_of_the_vertical_is_listed_with_its_line(shop: Path) -> None:
    path = shop / "vertical.yaml"
    edit(path, ("material: stuff}", "material: stoff}"), ("color: navy}", "color: navi}"))
    edit(shop / "catalogue.csv", ("24.50", '"24,50"'), ("9,bowl,6", "8,bowl,NaN"))
    edit(shop / "judged.jsonl", ('"grade": 2', '"grade": 4'), ('"sku": 7', '"sku": 5'))
    result = lore("validate", "shop")
    assert result.exit_code == 1
    at = "data/verticals/shop"
    slang, cpv = line_of(path, "midnight"), line_of(path, "stoff")
    assert result.stdout.splitlines() == [
        f"{at}/vertical.yaml:{slang}: lexicon.midnight.means.color: "
        "color 'navi' is unknown; did you mean 'navy'?",
        f"{at}/vertical.yaml:{cpv}: tables.items.columns.cpv.material: "
        "catalogue.csv: no column 'stoff'; did you mean 'stuff'?",
        f"{at}/judged.jsonl:2: grade: is 4, no known grade; known: '3', '2', '1', '0', '?'; "
        "add it to 'labels', or skip it there",
        "by choice: judged.jsonl:4: grade: grade '?' is skipped",
        "left out, cut or changed by choice: 1 x grade '?' is skipped (judged.jsonl:4)",
        f"{at}/vertical.yaml: 3 problems",
    ]
    edit(path, ("material: stoff}", "material: stuff}"))
    shown = lore("validate", "shop").stdout.splitlines()[1:]
    assert shown == [
        f"{at}/catalogue.csv:2: eur: is '24,50'; did you mean 24.50?",
        f"{at}/catalogue.csv:4: eur: is 'NaN'; write 0 where the price is not known",
        f"{at}/catalogue.csv:4: sku: is '8', which row 3 has already; ids stand once",
        f"{at}/judged.jsonl:1: sku: is '5', which items do not have",
        f"{at}/judged.jsonl:2: grade: is 4, no known grade; known: '3', '2', '1', '0', '?'; "
        "add it to 'labels', or skip it there",
        f"{at}/judged.jsonl:3: sku: is '9', which items do not have",
        "by choice: judged.jsonl:4: grade: grade '?' is skipped",
        "left out, cut or changed by choice: 1 x grade '?' is skipped (judged.jsonl:4)",
        f"{at}/vertical.yaml: 7 problems",
    ]


@pytest.mark.parametrize(
    ("old", "new", "field", "says"),
    [
        ("catalogue.csv", "catalog.csv", "items.file", "no such file in "),
        ("catalogue.csv", "../x.csv", "items.file", "must lie inside the vertical's folder"),
        ("catalogue.csv", "/x.csv", "items.file", "must lie inside the vertical's folder"),
        ("      title: name\n", "", "items.columns.title", "this field is missing"),
        ("title: name", "titel: name", "items.columns.titel", "unknown field; did you mean 'title'?"),
        ("price: eur", "price: no", "items.columns.price", "should be a valid string; write it in quotes"),
        ("price: eur", 'price: ""', "items.columns.price", "should have at least 1 character"),
        ("{color: shade", "{color: 3", "items.columns.cpv.color", "should be a valid string"),
        ("query: search", "query_id: search", "pairs.columns", "'query' is not mapped; map it, or add"),
        ("3: L4", "3: L5", "pairs.labels.3", "should be 'L1', 'L2', 'L3', 'L4' or 'skip'; known"),
        ("3: L4", "3: 4", "pairs.labels.3", "should be 'L1', 'L2', 'L3', 'L4' or 'skip'"),
        ("3: L4", "yes: L4", "pairs.labels.yes", "write it in quotes, as your file has it"),
        ("3: L4", "3: L4, '3': L1", "pairs.labels.3", "grade '3' stands twice, once in quotes"),
        ("  pairs:\n", "  queries: {file: q.csv, columns: {query_id: i, query: q}}\n  pairs:\n",
         "pairs.columns.query", "map 'query' under 'queries', which are there"),
        ("  pairs:\n", "  clicks: {file: c.csv, columns: {query_id: q, item_id: i, clicks: n}}\n  pairs:\n",
         "clicks.columns.query_id", "clicks name queries by their id"),
    ],
)  # fmt: skip
def test_a_wrong_mapping_is_named_with_its_line(
    shop: Path, old: str, new: str, field: str, says: str
) -> None:
    edit(shop / "vertical.yaml", (old, new))
    checked = validate(shop / "vertical.yaml")
    told = [(problem.field, problem.line) for problem in checked.problems if says in problem.message]
    assert [where for where, _ in told] == [f"tables.{field}"]
    assert all(line >= line_of(shop / "vertical.yaml", "tables:") for _, line in told)
    assert "query_id' is not mapped" in says or len(checked.problems) <= 2


def test_files_are_not_read_while_the_mapping_is_wrong(shop: Path) -> None:
    edit(shop / "vertical.yaml", ("title: name", "titel: name"))
    (shop / "catalogue.csv").unlink()
    checked = validate(shop / "vertical.yaml")
    assert {problem.field for problem in checked.problems} == {
        "tables.items.columns.title", "tables.items.columns.titel"
    }  # fmt: skip
    assert checked.summary == "2 problems; more may show once these are mended"


def test_a_vertical_with_neither_world_nor_tables_is_a_problem(shop: Path) -> None:
    edit(shop / "vertical.yaml", (OWN, ""))
    (problem,) = validate(shop / "vertical.yaml").problems
    assert "neither 'world' nor 'tables'" in problem.message


def test_the_mapping_that_the_template_shows_is_valid(shop: Path) -> None:
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    start = lines.index("# tables:")
    shown = [line.removeprefix("# ") for line in lines[start : lines.index("", start)]]
    own = OwnTables.model_validate(yaml.safe_load("\n".join(shown))["tables"])
    assert own.pairs.labels == {"3": "L4", "2": "L3", "1": "L2", "0": "L1", "?": "skip"}
    assert own.clicks is not None


def test_the_worked_example_of_the_readme_reads_as_it_says(tmp_path: Path) -> None:
    text = (project_root() / "data" / "README.md").read_text(encoding="utf-8")
    products, ratings = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    (section,) = re.findall(r"```yaml\ntables:\n(.*?)```", text, re.DOTALL)
    (tmp_path / "products.csv").write_text(products)
    (tmp_path / "ratings.csv").write_text(ratings)
    tables = plain.read(tmp_path, OwnTables.model_validate(yaml.safe_load(section)))
    assert {name: len(table) for name, table in tables.items()} == {
        "items": 3, "queries": 1, "pairs": 3, "clicks": 0
    }  # fmt: skip
    (tmp_path / "products.csv").write_text(products.replace("24.50", "24,50"))
    with pytest.raises(DataError, match=r"products.csv:2: field 'eur' is '24,50'; did you mean 24.50\?"):
        plain.read(tmp_path, OwnTables.model_validate(yaml.safe_load(section)))


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
