"""A training's folder: whose it is, which checkpoint is whole, and away with them at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lore_lib.artifacts import atomic_write_json, file_sha256
from lore_lib.errors import ArtifactError

FINISHED = "history.jsonl"
"""Written last: its presence means that the folder holds a whole model."""
JOB = "job.json"
"""What is trained in a folder, so that no other job takes its model, or goes on from its checkpoints."""


def claim_folder(job: Any, out: Path, elsewhere: Collection[str], files: Collection[str]) -> None:
    """Make a job's folder, or check that the model or the checkpoints in it are those of the same job.

    Args:
        job: a dataclass.
        out: its folder.
        elsewhere: fields that do not decide the result.
        files: fields that name a file: its contents decide, wherever it lies.

    Raises:
        ArtifactError: they are of another one, and what differs is named; or a file is not there.
    """
    mine = {name: value for name, value in asdict(job).items() if name not in elsewhere}
    for name in files:
        if not mine[name].is_file():
            raise ArtifactError(f"no {name} at {mine[name]}. Run the stage that writes it.")
        mine[name] = file_sha256(mine[name])
    path = out / JOB
    if path.is_file() and ((out / FINISHED).exists() or last_whole_checkpoint(out)):
        found = json.loads(path.read_text(encoding="utf-8"))
        differs = [
            f"other contents of {name}" if name in files else f"{name} {found.get(name)!r} (now {value!r})"
            for name, value in mine.items()
            if found.get(name) != value
        ]
        if differs:
            raise ArtifactError(
                f"{out} holds another training: {', '.join(differs)}. Train in another folder, or delete "
                "this one"
            )
    else:
        atomic_write_json(path, mine)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that a kill did not leave half-written: the trainer's state is its last file.

    transformers' own ``get_last_checkpoint`` takes the highest number; from a folder with weights alone the
    trainer would go on at step 0 with an optimiser that knows nothing.
    """
    whole: dict[int, Path] = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        state = path / TRAINER_STATE_NAME
        try:
            whole[int(json.loads(state.read_text(encoding="utf-8"))["global_step"])] = path
        except (OSError, ValueError, KeyError):
            continue
    return whole[max(whole)] if whole else None


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished training: optimiser states several times the model's size."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
