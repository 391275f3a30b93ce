"""Every notebook, in order, at profile smoke; then what they left behind is checked."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lore_lib.artifacts import read_manifest
from lore_lib.run.report import write_html
from lore_lib.run.runner import KERNEL, StageResult, install_kernel, run_stages
from lore_lib.run.stage import STAGES

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(1200)]

# Ranges that a broken pipeline would miss: (stage, metric) -> (least, most).
RANGES: dict[tuple[str, str], tuple[float, float]] = {
    ("00_start_here", "pairs judged"): (4, 4),
    ("01_features", "color accuracy | pixels"): (0.99, 1),  # the pictures show the true colour
    ("01_features", "color accuracy | seller's text"): (0.4, 0.8),  # the text often does not
    ("01_features", "style_detail accuracy | pixels"): (0.99, 1),  # nor does it ever tell the pattern
    ("01_features", "style_detail accuracy | seller's text"): (0, 0),
    ("01_features", "share of pairs | plain"): (0.4, 0.75),
    ("01_features", "prompt tokens, median | title, price (short)"): (20, 40),
    ("01_features", "prompt tokens, median | + shop, selling_points (full)"): (50, 100),
    ("01_features", "pass@1, all pairs | + picture (mid)"): (0, 0.9),  # hardly tuned: more would be a leak
    ("02_cot_synthesis", "meaning found | both"): (0.9, 1),
    ("02_cot_synthesis", "teacher accuracy | naive"): (0.3, 0.75),
    ("02_cot_synthesis", "teacher accuracy | progressive"): (0.98, 1),  # all evidence, all rules
    ("02_cot_synthesis", "kept share | progressive"): (0.9, 1),
    ("03_sft", "final loss | direct"): (0.01, 1.5),  # untrained: ln(1271) = 7.1
    ("03_sft", "final loss | progressive"): (0.01, 3),
    ("04_pass_at_8", "pass@1 | direct"): (0.05, 0.95),
    ("04_pass_at_8", "parse rate | direct"): (0.3, 1),
    ("06_rair", "acc@4 | majority label"): (0.1, 0.5),
    ("06_rair", "acc@4 | gradient boosting"): (0.25, 0.9),
    ("06_rair", "acc@4 | zero-shot base"): (0, 0.2),  # it was never told the form of an answer
    ("08_your_vertical", "teacher accuracy | progressive"): (0.9, 1),
    # without the picture or the rules the symbolic teacher fails on just the pairs that need them
    ("09_open_questions", "drop | vision taken from the teacher, visual pairs"): (0.9, 1),
    ("09_open_questions", "drop | vision taken from the teacher, plain pairs"): (0, 0),
    ("09_open_questions", "drop | rules taken from the teacher, boundary pairs"): (0.9, 1),
    ("09_open_questions", "acc@4 | direct, judged on beauty_care"): (0, 0.95),
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, StageResult]]:
    """The results of the whole chain by stage; it runs once."""
    before = os.environ.get("LORE_OUTPUTS")
    os.environ["LORE_OUTPUTS"] = str(tmp_path_factory.mktemp("outputs"))
    try:
        yield {result.stage: result for result in run_stages("smoke", run="smoke")}
    finally:
        if before is None:
            del os.environ["LORE_OUTPUTS"]
        else:
            os.environ["LORE_OUTPUTS"] = before


@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_is_whole(chain: dict[str, StageResult], stage: str) -> None:
    manifest = chain[stage].manifest
    assert set(STAGES[stage].promises) <= set(manifest.files)
    assert set(manifest.inputs) <= set(STAGES[stage].needs)
    estimators = {metric.name.partition(" | ")[0] for metric in manifest.metrics}
    assert set(STAGES[stage].headlines_of(manifest.config)) <= estimators, "a headline that no metric has"
    for metric in manifest.metrics:
        if metric.low is not None and metric.high is not None:
            assert metric.low <= metric.high, metric.name


def test_the_metrics_are_where_a_working_pipeline_puts_them(chain: dict[str, StageResult]) -> None:
    for (stage, metric), (least, most) in RANGES.items():
        found = {item.name: item.value for item in chain[stage].manifest.metrics}
        assert metric in found, f"{stage} has no metric {metric!r}; it has {sorted(found)}"
        assert least <= found[metric] <= most, f"{stage} {metric} = {found[metric]}"


def test_the_whole_chain_makes_one_page(chain: dict[str, StageResult]) -> None:
    page = write_html("smoke")
    text = page.read_text(encoding="utf-8")
    assert Path(page).name == "report.html"
    assert all(f'id="{stage}"' in text for stage in STAGES)


def test_a_second_run_has_nothing_to_do(chain: dict[str, StageResult]) -> None:
    assert {result.outcome for result in run_stages("smoke", run="smoke")} == {"unchanged"}


def test_plain_papermill_runs_a_notebook_from_any_folder(root: Path, tmp_path: Path) -> None:
    install_kernel()
    environment = {name: value for name, value in os.environ.items() if name != "LORE_ROOT"}
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(root / "notebooks" / "00_start_here.ipynb"),
        "out.ipynb",
    ]
    done = subprocess.run(
        [*command, "-k", KERNEL, "-p", "PROFILE", "smoke", "-p", "RUN", "elsewhere"],
        cwd=tmp_path, env=environment | {"LORE_OUTPUTS": str(tmp_path / "outputs")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.ipynb").is_file()
    assert read_manifest(tmp_path / "outputs" / "elsewhere" / "00_start_here").profile == "smoke"
