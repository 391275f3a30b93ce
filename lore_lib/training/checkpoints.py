"""Checkpoints of a training in its folder: whose they are, which is whole, and away with them at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lore_lib.artifacts import atomic_write_json
from lore_lib.errors import ArtifactError

JOB = "job.json"
"""What is being trained in a folder, so that no other job goes on from its checkpoints."""


def claim_folder(job: Any, out: Path, elsewhere: Collection[str]) -> None:
    """Make a job's folder, or check that the checkpoints in it are those of the same job.

    Args:
        job: a dataclass.
        out: its folder.
        elsewhere: fields that do not decide the result.

    Raises:
        ArtifactError: they are of another one; what differs is named.
    """
    mine = {name: value for name, value in asdict(job).items() if name not in elsewhere}
    path = out / JOB
    if path.is_file() and last_whole_checkpoint(out):
        found = json.loads(path.read_text(encoding="utf-8"))
        differs = [
            f"{name} {found.get(name)!r} (now {mine[name]!r})"
            for name in mine
            if found.get(name) != mine[name]
        ]
        if differs:
            raise ArtifactError(
                f"{out} holds checkpoints of another training: {', '.join(differs)}. Train in another "
                "folder, or delete this one"
            )
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
