"""The seconds-long gate over every notebook: no kernel, no torch."""

import ast
import builtins
import importlib.util
import json
import re
import symtable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from lore_lib.config import SECTIONS
from lore_lib.run.runner import PARAMETERS
from lore_lib.run.stage import STAGES

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_CELL_LINES, MAX_FUNCTION_LINES, MAX_CODE_LINES = 30, 8, 150
HEADINGS = (
    "What you will have at the end",
    "Needs, writes, minutes",
    "Parameters",
    "1 ",
    "2 ",
    "Results",
    "For your own data",
    "Where in the paper",
)
TYPES = {"PROFILE": "str", "VERTICAL": "str", "RUN": "str", "SEED": "int", "OVERRIDES": "dict"}
FORBIDDEN = {
    r"^\s*[!%]\s*(pip|conda|uv)\b|!pip|subprocess.*pip": "installs packages; versions live in pyproject.toml",
    r"\blogin\(|notebook_login|HF_TOKEN|wandb": "asks for an account",
    r"['\"(\s](/(home|root|Users|tmp|content|mnt|work|opt)/|~/|[A-Z]:\\)": "names a path of one machine",
    r"^\s*if (False|0)\s*:": "has dead code",
    r"^\s*except\s*:|except Exception": "hides failures",
    r"\b(np|numpy)\.random\.(seed|rand|choice)|torch\.manual_seed|random\.seed\(": "sets a global seed",
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def book(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[Any]:
    return [cell for cell in book(path).cells if cell.cell_type == "code"]


def tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def tree(path: Path) -> ast.Module:
    return ast.parse("\n".join(cell.source for cell in code(path)))


def test_there_is_one_notebook_per_stage() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(STAGES)


@each_notebook
def test_it_is_valid_and_every_cell_parses(path: Path) -> None:
    nbformat.validate(json.loads(path.read_text(encoding="utf-8")))
    for number, cell in enumerate(code(path), start=1):
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            pytest.fail(f"code cell {number} does not parse: {error}")


@each_notebook
def test_it_names_the_kernel_of_this_project(path: Path) -> None:
    assert book(path).metadata.get("kernelspec", {}).get("name") == "lore"


@each_notebook
def test_its_parameters_are_typed_literals(path: Path) -> None:
    cells = [cell for cell in code(path) if "parameters" in tags(cell)]
    assert len(cells) == 1, f"{len(cells)} cells are tagged parameters, want 1"
    types = {}
    for node in ast.parse(cells[0].source).body:
        assert isinstance(node, ast.AnnAssign), f"line {node.lineno}: write NAME: type = literal"
        assert isinstance(node.target, ast.Name)
        assert node.value is not None
        ast.literal_eval(node.value)
        types[node.target.id] = ast.unparse(node.annotation).partition("[")[0]
    assert set(types) >= set(PARAMETERS)
    assert {name: types[name] for name in TYPES} == TYPES
    read = {
        node.id
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert set(types) <= read, f"never read: {sorted(set(types) - read)}"


@each_notebook
def test_it_is_a_page_turner(path: Path) -> None:
    cells = code(path)
    longest = max(len(cell.source.splitlines()) for cell in cells)
    assert longest <= MAX_CELL_LINES, f"a cell of {longest} lines; move logic to the library"
    lines = sum(1 for cell in cells for line in cell.source.splitlines() if line.strip())
    assert lines <= MAX_CODE_LINES, f"{lines} lines of code"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines; move it to the library"


@each_notebook
def test_it_is_committed_without_outputs(path: Path) -> None:
    kept = [
        number
        for number, cell in enumerate(code(path), start=1)
        if (cell.outputs or cell.execution_count) and "keep_output" not in tags(cell)
    ]
    assert not kept, f"code cells {kept} have outputs; run nbstripout"


@each_notebook
@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_it_does_not(path: Path, pattern: str) -> None:
    for number, cell in enumerate(code(path), start=1):
        found = re.search(pattern, cell.source, flags=re.MULTILINE)
        assert not found, f"code cell {number} {FORBIDDEN[pattern]}: {found and found.group().strip()}"


@each_notebook
def test_it_has_the_skeleton(path: Path) -> None:
    prose = "\n".join(cell.source for cell in book(path).cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^# \S", prose, flags=re.MULTILINE)) == 1, "want one H1 title"
    assert book(path).cells[0].source.startswith("# ")
    found = re.findall(r"^## (.+)$", prose, flags=re.MULTILINE)
    places = [next((at for at, text in enumerate(found) if text.startswith(want)), -1) for want in HEADINGS]
    assert -1 not in places, f"no heading {HEADINGS[places.index(-1)]!r} among {found}"
    assert places == sorted(places), f"headings out of order: {found}"


@each_notebook
def test_it_opens_and_finishes_its_own_stage(path: Path) -> None:
    cells = code(path)
    assert re.search(rf"open_stage\(\s*['\"]{path.stem}['\"]", "\n".join(cell.source for cell in cells))
    assert ".finish()" in cells[-1].source


@each_notebook
def test_it_reads_only_the_settings_its_stage_depends_on(path: Path) -> None:
    """A setting that is read but not listed would change a result without changing its key."""
    source = "\n".join(cell.source for cell in code(path))
    read = set(re.findall(r"\bconfig\.(\w+)", source)) & set(SECTIONS)
    assert read <= set(STAGES[path.stem].sections)


@each_notebook
def test_it_requires_only_stages_it_lists(path: Path) -> None:
    source = "\n".join(cell.source for cell in code(path))
    read = set(re.findall(r"(?:require|read_table)\(\s*['\"](\d\d_\w+)['\"]", source)) - {path.stem}
    assert read <= set(STAGES[path.stem].needs)


@each_notebook
def test_every_name_is_bound(path: Path) -> None:
    bound = {*dir(builtins), "display", "get_ipython", "__file__"}
    unbound: list[str] = []
    for number, cell in enumerate(code(path), start=1):
        table = symtable.symtable(cell.source, f"cell {number}", "exec")
        bound |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_assigned() or symbol.is_imported()
        }
        unbound += [f"cell {number}: {name}" for name in sorted(set(loaded(table)) - bound)]
    assert not unbound, f"never bound: {unbound}"


def loaded(table: symtable.SymbolTable) -> Iterator[str]:
    """Names read from module scope by this table and the functions within it."""
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from loaded(child)


@each_notebook
def test_every_library_name_it_imports_exists(path: Path) -> None:
    """Read from the sources, so that a renamed function is seen without importing torch."""
    missing = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lore_lib"):
            offered = names_of(node.module or "")
            missing += [f"{node.module}.{name.name}" for name in node.names if name.name not in offered]
    assert not missing, f"the library lacks: {missing}"


def names_of(module: str) -> set[str]:
    """What a module of the library binds at its top level, submodules included."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"no module {module}"
    assert spec.origin is not None
    table = symtable.symtable(Path(spec.origin).read_text(encoding="utf-8"), module, "exec")
    names = {
        symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()
    }
    for folder in spec.submodule_search_locations or ():
        names |= {path.stem for path in Path(folder).iterdir() if path.suffix == ".py" or path.is_dir()}
    return names
