"""The report of a run: its manifests gathered, shown as a table, as JSON, or as one HTML file."""

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lore_lib.artifacts import (
    Manifest,
    atomic_write_text,
    outputs_root,
    read_manifest,
    verify_files,
)
from lore_lib.errors import ArtifactError, nearest
from lore_lib.run.stage import STAGES, mock_notices
from lore_lib.viz.report import StageSection, format_cell, render_report, summarise_stage

REPORT = "report.html"


def gather(run: str) -> list[Manifest]:
    """The manifests of a run's finished stages, in order, with every file of them checked.

    Raises:
        ArtifactError: no such run, no finished stage, or a damaged one.
    """
    folder = find_run(run)
    manifests = []
    for name in STAGES:
        if (folder / name / "manifest.json").is_file():
            manifest = read_manifest(folder / name)
            verify_files(folder / name, manifest)
            manifests.append(manifest)
    if not manifests:
        raise ArtifactError(f"run {run!r} has no finished stage yet; run: lore run --run {run}")
    return manifests


def find_run(run: str) -> Path:
    """The folder of a run.

    Raises:
        ArtifactError: there is none of that name.
    """
    folder = outputs_root() / run
    if not run or not folder.is_dir():
        runs = sorted(path.parent.name for path in outputs_root().glob("*/run.json"))
        hint = nearest(run, runs) if runs else "start one: lore run"
        raise ArtifactError(f"no run {run!r} in {outputs_root()}; {hint}")
    return folder


def write_html(run: str) -> Path:
    """Write outputs/<run>/report.html and return its path."""
    manifests = gather(run)
    folder = outputs_root() / run
    sections = [
        StageSection(
            manifest=manifest,
            shows=STAGES[manifest.stage].shows,
            headlines=STAGES[manifest.stage].headlines_of(manifest.config),
            figures=[folder / manifest.stage / name for name in manifest.files if _is_figure(name)],
            mocks=mock_notices(manifest.engines),
        )
        for manifest in manifests
    ]
    missing = [name for name in STAGES if name not in {manifest.stage for manifest in manifests}]
    return atomic_write_text(folder / REPORT, render_report(sections, missing))


def as_json(run: str) -> str:
    """The run as JSON: its identity, and each stage with its engines, metrics, counts, seconds and memory."""
    manifests = gather(run)
    first = manifests[0]
    kept = {"stage", "engines", "counts", "metrics", "seconds", "peak_memory_mib", "versions"}
    body: dict[str, Any] = {name: getattr(first, name) for name in ("run", "profile", "vertical", "seed")}
    body["mocks"] = sorted({notice for manifest in manifests for notice in mock_notices(manifest.engines)})
    body["stages"] = [manifest.model_dump(mode="json", include=kept) for manifest in manifests]
    return json.dumps(body, indent=2, ensure_ascii=False)


def print_summary(run: str, console: Console) -> None:
    """Print what each stage found in short, systems by headline estimators, then the mocks it leans on."""
    manifests = gather(run)
    for manifest in manifests:
        headlines = STAGES[manifest.stage].headlines_of(manifest.config)
        if summary := summarise_stage(manifest, headlines):
            title = f"{manifest.stage}: {STAGES[manifest.stage].shows} (n = {summary.n})"
            console.print(title, style="bold", markup=False)
            table = Table(box=SIMPLE_HEAD)
            table.add_column("", overflow="fold")
            for estimator in summary.estimators:
                table.add_column(escape(estimator), justify="right")
            for system, metrics in summary.rows:
                table.add_row(escape(system), *map(format_cell, metrics))
            console.print(table)
    for notice in sorted({notice for manifest in manifests for notice in mock_notices(manifest.engines)}):
        console.print(f"mock: {notice}", markup=False)
    count = sum(len(manifest.metrics) for manifest in manifests)
    more = f"all {count} numbers with their seeds: lore report --run {run} --json"
    console.print(f"95 % intervals in brackets; {more}", markup=False, soft_wrap=True)


def _is_figure(name: str) -> bool:
    return name.startswith("figures/") and name.endswith(".png")
