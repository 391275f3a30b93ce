"""One truth about dependencies: pyproject.toml; the other files only point at it."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXACT = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "papermill", "nbclient")


@pytest.fixture
def project(root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return table


def requirements(project: dict[str, Any], *extras: str) -> list[Requirement]:
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def test_what_is_installed_meets_every_pin(project: dict[str, Any]) -> None:
    wrong = []
    for requirement in requirements(project, "dev"):
        version = importlib.metadata.version(requirement.name)
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} but {version} is installed")
    assert not wrong


def test_the_installed_package_was_made_from_this_file(project: dict[str, Any]) -> None:
    installed = {Requirement(text).name for text in importlib.metadata.requires("lore-kit") or ()}
    declared = requirements(project, *project["optional-dependencies"])
    assert installed == {requirement.name for requirement in declared}


@pytest.mark.parametrize("name", EXACT)
def test_fast_moving_packages_are_pinned_exactly(project: dict[str, Any], name: str) -> None:
    (requirement,) = [item for item in requirements(project) if item.name == name]
    assert [clause.operator for clause in requirement.specifier] == ["=="]


def test_every_requirement_is_bounded(project: dict[str, Any]) -> None:
    loose = [str(item) for item in requirements(project) if not re.search(r"==|<", str(item.specifier))]
    assert not loose


def test_conda_only_supplies_python(root: Path) -> None:
    environment = yaml.safe_load((root / "environment.yml").read_text())
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    (nested,) = [item for item in environment["dependencies"] if isinstance(item, dict)]
    assert plain == ["python=3.11", "pip"]
    assert nested == {"pip": ["-e .[dev]"]}


def test_the_python_of_conda_is_allowed(project: dict[str, Any]) -> None:
    assert Requirement(f"python{project['requires-python']}").specifier.contains("3.11.0")


def test_make_installs_the_extra_that_exists(root: Path, project: dict[str, Any]) -> None:
    makefile = (root / "Makefile").read_text()
    assert re.findall(r'-e "\.\[(\w+)\]"', makefile) == ["dev"]
    assert set(project["optional-dependencies"]) >= {"dev"}


def test_the_readme_names_commands_that_exist(root: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", (root / "README.md").read_text()))
    assert {"run", "test"} <= named <= targets


def test_ci_runs_what_the_readme_names(root: Path) -> None:
    script = root / ".ci" / "run"
    assert "make test" in script.read_text()
    assert script.stat().st_mode & 0o111
    assert ".ci/run" in (root / ".github" / "workflows" / "tests.yml").read_text()


def test_every_test_runs_somewhere(root: Path) -> None:
    """`make test` runs what plain pytest leaves out, but for what needs other hardware or extras."""
    makefile = (root / "Makefile").read_text()
    (left_out,) = re.findall(r'pytest -m "([^"]*)"', makefile)
    assert set(left_out.replace("and", "").replace("not", "").split()) == {"gpu", "vllm"}


def imported(root: Path) -> set[str]:
    """Top-level third-party modules that the library imports, anywhere in a file."""
    names: set[str] = set()
    for path in (root / "lore_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"lore_lib"}


def test_everything_the_library_imports_is_required(root: Path, project: dict[str, Any]) -> None:
    extras = set(project["optional-dependencies"]) - {"dev"}
    required = {canonicalize_name(item.name) for item in requirements(project, *extras)}
    owners = importlib.metadata.packages_distributions()
    undeclared = {
        module: owners.get(module, [module])
        for module in imported(root)
        if not {canonicalize_name(name) for name in owners.get(module, [module])} & required
    }
    assert not undeclared, f"add to pyproject.toml: {undeclared}"
