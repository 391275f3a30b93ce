"""Whose a training's folder is, and which of its checkpoints may be gone on from."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lore_lib.errors import ArtifactError
from lore_lib.training.checkpoints import FINISHED, claim_folder, last_whole_checkpoint


def test_a_checkpoint_that_a_kill_left_half_written_is_passed_over(tmp_path: Path) -> None:
    assert last_whole_checkpoint(tmp_path) is None
    states = {"2": '{"global_step": 2}', "10": '{"global_step": 10}', "12": '{"global_', "14": None}
    for number, state in states.items():
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "model.safetensors").touch()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@dataclass(frozen=True)
class Job:
    base: str
    rate: float
    rows: Path
    out: Path
    device: str = "cpu"


@pytest.mark.parametrize("held", [FINISHED, "checkpoint-2/trainer_state.json"])
def test_a_folder_with_a_model_or_a_checkpoint_is_kept_for_its_own_job(tmp_path: Path, held: str) -> None:
    rows, moved, other = (tmp_path / name for name in ("rows", "moved", "other"))
    for path, text in ((rows, "a"), (moved, "a"), (other, "b")):
        path.write_text(text, encoding="utf-8")
    job = Job("base", 0.1, rows, tmp_path / "out")

    def claim(job: Job) -> None:
        claim_folder(job, job.out, ("out", "device"), ("rows",))

    job.out.mkdir()
    claim(job)
    claim(replace(job, rate=0.2))  # nothing was trained yet
    claim(job)
    (job.out / held).parent.mkdir(exist_ok=True)
    (job.out / held).write_text('{"global_step": 2}', encoding="utf-8")
    written = (job.out / "job.json").stat().st_mtime_ns
    claim(replace(job, rows=moved, device="cuda"))
    for wrong, told in (
        ({"rows": other}, "another training: other contents of rows. Train in another folder"),
        ({"rate": 0.2, "base": "new"}, r"another training: base 'base' \(now 'new'\), rate 0.1 \(now 0.2\)"),
        ({"rows": tmp_path / "gone"}, "no rows at .*gone"),
    ):
        with pytest.raises(ArtifactError, match=told):
            claim(replace(job, **wrong))  # type: ignore[arg-type]
    assert (job.out / "job.json").stat().st_mtime_ns == written
