import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from PIL import Image

from lore_lib.artifacts import MANIFEST, read_manifest
from lore_lib.config import SECTIONS, load_config
from lore_lib.errors import ArtifactError, ConfigError, DataError
from lore_lib.run import stage as stage_module
from lore_lib.run.stage import STAGES, Stage, finished, open_stage, stage_key, stage_spec, tree_rss_mib


def keep_promises(stage: Stage) -> Stage:
    for name in stage.spec.promises:
        stage.path(*name.split("/")).write_text(name)
    return stage


def done(name: str, **options: Any) -> Stage:
    stage = keep_promises(open_stage(name, **options))
    stage.finish()
    return stage


def test_the_stages_are_in_order_and_need_only_earlier_ones() -> None:
    names = list(STAGES)
    assert [int(name[:2]) for name in names] == list(range(10))
    for spec in STAGES.values():
        assert all(names.index(need) < names.index(spec.name) for need in spec.needs)
        assert set(spec.sections) <= set(SECTIONS)
        assert all(minutes > 0 for minutes in spec.minutes.values())


def test_what_a_stage_reads_it_depends_on() -> None:
    """A stage sees the sections of all it builds on, so an upstream change cannot pass unseen."""
    for spec in STAGES.values():
        for need in spec.needs:
            assert set(STAGES[need].sections) <= set(spec.sections)


@pytest.mark.parametrize(
    ("section", "first"),
    [
        ("cot", "02_cot_synthesis"),
        ("sft", "02_cot_synthesis"),  # its experiment trains and samples students
        ("sampling", "02_cot_synthesis"),
        ("grpo", "05_grpo"),
        ("rair", "06_rair"),
        ("serving", "07_serving"),
    ],
)
def test_a_section_reaches_no_further_back_than_it_must(section: str, first: str) -> None:
    """Else changing a learning rate would make everything before the training again."""
    assert next(spec.name for spec in STAGES.values() if section in spec.sections) == first


def test_a_stage_writes_its_manifest_last(kit: Any) -> None:
    stage = open_stage("01_features", "smoke", run="r")
    assert stage.folder == kit.outputs / "r" / "01_features"
    keep_promises(stage)
    stage.write_table("extra", pd.DataFrame({"a": [1]}))
    stage.write_rows("log", [{"step": 1}])
    stage.count("pairs", 12)
    stage.engine("sampler", "hf")
    stage.metric("share | kept", 0.5, 0.4, 0.6, n=12)
    assert not (stage.folder / MANIFEST).exists()
    manifest = stage.finish()
    assert read_manifest(stage.folder) == manifest
    assert {"extra.parquet", "log.jsonl", *stage.spec.promises} == set(manifest.files)
    assert manifest.counts == {"pairs": 12}
    assert manifest.engines == {"captioner": "pixels", "sampler": "hf"}
    assert manifest.metrics[0].seeds == (17,)
    assert set(manifest.config) == set(stage.spec.sections)
    assert manifest.peak_memory_mib > 10
    assert manifest.versions["torch"]


def test_a_broken_promise_leaves_no_manifest(kit: Any) -> None:
    stage = open_stage("01_features", "smoke")
    keep_promises(stage)
    (stage.folder / stage.spec.promises[0]).unlink()
    with pytest.raises(ArtifactError, match=re.escape(stage.spec.promises[0])):
        stage.finish()
    assert not (stage.folder / MANIFEST).exists()


def test_opening_again_takes_the_manifest_away_and_keeps_files_to_resume_from(kit: Any) -> None:
    stage = done("01_features")
    stage.path("checkpoint", "step_50").write_text("weights")
    stage.path(".torn.123.part").write_text("half")
    again = open_stage("01_features")
    assert not (again.folder / MANIFEST).exists()
    assert (again.folder / "checkpoint" / "step_50").read_text() == "weights"
    assert not (again.folder / ".torn.123.part").exists()


def write_data(kit: Any, name: str, text: str) -> None:
    path = kit.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("change", ["config", "input", "vertical", "model", "library"])
def test_files_made_from_something_else_are_not_resumed_from(
    kit: Any, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    done("01_features")
    stage = open_stage("02_cot_synthesis")
    stage.path("checkpoint", "step_50").write_text("weights")
    stage.path("executed.ipynb").write_text("{}")
    overrides = {}
    if change == "config":
        overrides = {"cot.top_clicked": 2}
    elif change == "input":
        first = done("01_features")
        first.path("items.parquet").write_text("others")
        first.finish()
    elif change == "vertical":
        write_data(kit, "data/verticals/apparel_home/vertical.yaml", "name: other")
    elif change == "model":
        write_data(kit, "data/models/lore-nano/model.safetensors", "other weights")
    else:
        monkeypatch.setattr(stage_module, "_source_hash", lambda without: "edited")
    again = open_stage("02_cot_synthesis", overrides=overrides)
    assert not (again.folder / "checkpoint").exists()
    assert (again.folder / "executed.ipynb").exists()


def test_a_model_that_was_being_saved_does_not_stop_a_stage_from_opening(kit: Any) -> None:
    stage = open_stage("05_grpo")
    half = stage.path("runs", "seed-0", "best.part", "model.safetensors")
    half.write_bytes(b"x")
    torn = stage.path(".pool.parquet.7.part")
    torn.write_bytes(b"x")
    open_stage("05_grpo")
    assert half.exists()
    assert not torn.exists()


def test_a_run_folder_holds_one_profile_vertical_and_seed(kit: Any) -> None:
    open_stage("01_features", "smoke", run="r")
    for options in ({"profile": "demo"}, {"seed": 3}, {"vertical": "beauty"}):
        with pytest.raises(ArtifactError, match="such as RUN="):
            open_stage("01_features", **({"profile": "smoke", "run": "r"} | options))
    open_stage("01_features", "smoke", run="r", overrides={"world.train_queries": 20})


@pytest.mark.parametrize("text", ['{"prof', "[1]", ""])
def test_a_run_folder_that_does_not_say_what_it_is_of_is_refused(kit: Any, text: str) -> None:
    open_stage("01_features", "smoke", run="r")
    (kit.outputs / "r" / "run.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"run\.json"):
        open_stage("01_features", "smoke", run="r")


def test_require_gives_the_folder_of_a_whole_stage(kit: Any) -> None:
    first = open_stage("01_features", "smoke")
    keep_promises(first)
    frame = pd.DataFrame({"pair_id": ["a"]})
    first.write_table("extra", frame)
    first.finish()
    second = open_stage("02_cot_synthesis", "smoke")
    assert second.require("01_features") == first.folder
    pd.testing.assert_frame_equal(second.read_table("01_features", "extra"), frame)
    second.write_table("mine", frame)
    pd.testing.assert_frame_equal(second.read_table("02_cot_synthesis", "mine"), frame)
    keep_promises(second)
    assert set(second.finish().inputs) == {"01_features"}


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def truncate(folder: Path) -> None:
    path = folder / STAGES["01_features"].promises[0]
    path.write_text(path.read_text()[:3])


def alter(folder: Path) -> None:
    path = folder / STAGES["01_features"].promises[0]
    path.write_text(path.read_text().upper())


def older_schema(folder: Path) -> None:
    rewrite(folder, schema_version=0)


def foreign_profile(folder: Path) -> None:
    rewrite(folder, profile="paper")


def foreign_seed(folder: Path) -> None:
    rewrite(folder, seed=99)


def rewrite(folder: Path, **fields: Any) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_manifest, "was interrupted"),
        (truncate, "has 3 bytes"),
        (alter, "was altered"),
        (older_schema, "schema_version 0"),
        (foreign_profile, "profile 'paper'"),
        (foreign_seed, "seed 99"),
    ],
)
def test_require_refuses_what_is_not_whole_and_names_the_command(kit: Any, damage: Any, says: str) -> None:
    damage(done("01_features", profile="smoke", run="r").folder)
    second = open_stage("02_cot_synthesis", "smoke", run="r")
    with pytest.raises(ArtifactError) as caught:
        second.require("01_features")
    assert says in str(caught.value)
    assert "lore run --profile smoke --vertical apparel_home --run r --seed 17 --only 01_features" in str(
        caught.value
    )


def test_require_refuses_an_input_made_with_other_settings(kit: Any) -> None:
    done("01_features")
    second = open_stage("02_cot_synthesis", overrides={"world.train_queries": 50})
    with pytest.raises(ArtifactError, match=r"world\.train_queries=900 \(now 50\)"):
        second.require("01_features")
    done("01_features", overrides={"runtime.workers": 1})
    assert open_stage("02_cot_synthesis").require("01_features")


def test_reading_a_stage_that_is_not_listed_is_an_error(kit: Any) -> None:
    with pytest.raises(ConfigError, match="add it to `needs`"):
        open_stage("01_features").require("05_grpo")
    with pytest.raises(ConfigError, match="did you mean '03_sft'"):
        open_stage("01_features").require("03_stf")
    with pytest.raises(ConfigError, match="did you mean '05_grpo'"):
        open_stage("05_gpro")


def test_a_finished_stage_is_known_until_something_changes(kit: Any) -> None:
    kit.notebook("01_features")
    stage = done("01_features")
    assert finished(stage.spec, stage.config) == read_manifest(stage.folder)
    for changed in (
        load_config(overrides={"world.train_queries": 20}),
        load_config(overrides={"features.template": "en"}),
        load_config(seed=3),
    ):
        assert stage_key(stage.spec, changed) != stage.key
    assert stage_key(stage.spec, load_config(overrides={"rair.bootstrap": 9})) == stage.key
    kit.notebook("01_features", "print('another cell')")
    assert finished(stage.spec, stage.config) is None
    kit.notebook("01_features", parameters="PROFILE = 'smoke'")
    assert finished(stage.spec, stage.config) is not None
    alter(stage.folder)
    assert finished(stage.spec, stage.config) is None


def test_the_key_follows_the_library_but_not_the_runner(
    kit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "lore_lib"
    for name in ("__init__.py", "cli.py", "run/stage.py", "viz/figures.py", "rng.py", "features/en.yaml"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    monkeypatch.setattr(stage_module.lore_lib, "__file__", str(package / "__init__.py"))
    spec, config = stage_spec("03_sft"), load_config()
    key, token = stage_key(spec, config), stage_module.resume_token(spec, config)
    for name in ("cli.py", "run/stage.py"):
        (package / name).write_text("edited")
    assert stage_key(spec, config) == key
    (package / "viz/figures.py").write_text("edited")
    assert stage_key(spec, config) != key
    assert stage_module.resume_token(spec, config) == token
    for name in ("rng.py", "features/en.yaml"):  # a template decides results like code
        (package / name).write_text("edited")
        assert stage_module.resume_token(spec, config) != token
        token = stage_module.resume_token(spec, config)


def test_metrics_are_finite_and_a_cell_run_twice_counts_once(kit: Any) -> None:
    stage = open_stage("01_features")
    with pytest.raises(DataError, match="'pass@1' is nan"):
        stage.metric("pass@1", float("nan"), n=3)
    with pytest.raises(DataError, match="finite"):
        stage.metric("pass@1", 0.5, 0.1, float("inf"), n=3)
    stage.metric("pass@1", 0.5, n=3)
    stage.metric("pass@1", 0.6, float("nan"), float("nan"), n=3, seeds=(0, 1))
    (metric,) = keep_promises(stage).finish().metrics
    assert (metric.value, metric.seeds) == (0.6, (0, 1))
    assert (metric.low, metric.high) == (None, None), "no interval from one query"


def test_a_figure_carries_its_caption(kit: Any) -> None:
    stage = open_stage("01_features")
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    path = stage.save_figure(figure, "lengths", "Tokens <per> prompt")
    plt.close(figure)
    assert path == stage.folder / "figures" / "lengths.png"
    with Image.open(path) as image:
        assert image.info["Description"] == "Tokens <per> prompt"
        assert image.width > 300


def test_show_gives_the_resolved_settings_and_the_mocks(kit: Any) -> None:
    card = open_stage("02_cot_synthesis", "smoke", overrides={"cot.selling_points": 7}).show()
    text = repr(card)
    assert "selling_points=7" in text
    assert "captioner 'pixels' stands in for a vision-language model" in text
    assert "teacher 'symbolic' stands in for a large teacher model" in text
    assert "grpo" not in text
    html = dataclasses.replace(card, rows=(("<b>", "<script>"),))._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_outputs_that_cannot_be_written_name_the_fix(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match="LORE_OUTPUTS"):
        open_stage("01_features")


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    assert tree_rss_mib(2**22 + 7) == 0.0
    assert tree_rss_mib(os.getpid()) > 10
