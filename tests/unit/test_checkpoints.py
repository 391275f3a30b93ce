"""Which checkpoints of a training folder may be gone on from."""

from pathlib import Path

from lore_lib.training.checkpoints import last_whole_checkpoint


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
