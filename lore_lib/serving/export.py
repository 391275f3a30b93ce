"""The student as one ONNX file: no torch and no transformers where it serves, and several times as fast."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from lore_lib.artifacts import atomic_write, atomic_write_json, file_sha256
from lore_lib.errors import ArtifactError, EngineError
from lore_lib.serving.calibration import temper
from lore_lib.serving.frame import Frame
from lore_lib.vertical.schema import LABELS

if TYPE_CHECKING:
    from lore_lib.sampling.intervals import Floats
    from lore_lib.serving.student import Student

CARD, MODEL, TOKENIZER = "student.json", "model.onnx", "tokenizer.json"
OPSET = 17
FURTHEST = 1e-3  # a share by which ONNX Runtime may differ from torch before the export counts as failed


class _Card(BaseModel):
    """What stands beside the model; written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: dict[Literal["model.onnx", "tokenizer.json"], str]
    labels: tuple[str, ...]
    max_tokens: int = Field(ge=1)
    before: list[int]  # tokens around a prompt
    behind: list[int]
    pad_id: int = Field(ge=0)
    temperature: float = Field(gt=0, allow_inf_nan=False)
    weights: Literal["float32", "int8"]


class OnnxStudent:
    """A student that ONNX Runtime runs, read by `load_onnx_student`.

    Args:
        folder: as `export_student` wrote it, checked.
        card: of that folder.
        threads: of one batch.
    """

    def __init__(self, folder: Path, card: _Card, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors alone
        try:
            self._session = onnxruntime.InferenceSession(
                folder / MODEL, options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # its errors have no base of their own
            raise EngineError(f"{folder / MODEL} cannot be run by ONNX Runtime: {error}") from error
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._frame = Frame(card.before, card.behind)
        self._max_tokens, self._pad_id = card.max_tokens, card.pad_id
        self.temperature, self.fingerprint = card.temperature, card.sha256["model.onnx"][:12]

    def predict_proba(self, prompts: Sequence[str], batch: int = 64) -> Floats:
        """Probability of L1..L4 per prompt, tempered, (prompts, 4)."""
        parts = [np.empty((0, len(LABELS)))]
        for start in range(0, len(prompts), batch):
            bare = self._tokenizer.encode_batch(
                list(prompts[start : start + batch]), add_special_tokens=False
            )
            rows = [self._frame.around(text.ids, self._max_tokens) for text in bare]
            ids = np.full((len(rows), max(map(len, rows))), self._pad_id, dtype=np.int64)
            mask = np.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, : len(row)], mask[i, : len(row)] = row, 1
            inputs = {"input_ids": ids, "attention_mask": mask}
            logits = self._session.run(["logits"], inputs)[0].astype(np.float64)
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            parts.append(powers / powers.sum(axis=1, keepdims=True))
        return temper(np.concatenate(parts), self.temperature)

    def predict(self, prompts: Sequence[str]) -> list[str]:
        """The most probable label of each prompt."""
        return [LABELS[best] for best in self.predict_proba(prompts).argmax(axis=1)]


def export_student(
    student: Student, folder: Path, prompts: Sequence[str], temperature: float = 1.0, int8: bool = False
) -> OnnxStudent:
    """Write a student as ONNX, read it back, and see that it says the same.

    Args:
        student: trained.
        folder: gets the model, the tokenizer and, last, a card with their checksums.
        prompts: on which torch and ONNX Runtime must agree; 1 or more.
        temperature: by which the service divides the logits; see `calibration.fit_temperature`.
        int8: weights in 8 bits (dynamic quantisation); these may differ from torch.

    Raises:
        EngineError: what was written does not say what the student says.
    """
    (folder / CARD).unlink(missing_ok=True)
    atomic_write(folder / MODEL, lambda part: _trace(student, part))
    if int8:
        atomic_write(folder / MODEL, lambda part: _quantise(folder / MODEL, part))
    atomic_write(folder / TOKENIZER, lambda part: student.tokenizer.backend_tokenizer.save(str(part)))
    card = _Card(
        sha256={"model.onnx": file_sha256(folder / MODEL), "tokenizer.json": file_sha256(folder / TOKENIZER)},
        labels=LABELS,
        max_tokens=student.max_tokens,
        before=student.frame.before,
        behind=student.frame.behind,
        pad_id=student.tokenizer.pad_token_id,
        temperature=temperature,
        weights="int8" if int8 else "float32",
    )
    atomic_write_json(folder / CARD, card.model_dump(mode="json"))
    exported = load_onnx_student(folder)
    expected = temper(student.predict_proba(list(prompts)), temperature)
    far = float(np.abs(exported.predict_proba(prompts) - expected).max())
    if far > FURTHEST and not int8:
        (folder / CARD).unlink()
        raise EngineError(
            f"{folder / MODEL} differs from the student by {far:.3f} in a probability (allowed: {FURTHEST}); "
            "serve the student with torch, or take another serving.student_base"
        )
    return exported


def load_onnx_student(folder: Path, threads: int = 1) -> OnnxStudent:
    """Read what `export_student` wrote.

    Args:
        folder: of the export.
        threads: of one batch.

    Raises:
        ArtifactError: a file is missing, or is not the one that was written.
        EngineError: ONNX Runtime cannot run it.
    """
    path = folder / CARD
    if not path.is_file():
        raise ArtifactError(
            f"no {CARD} in {folder}: no student was exported there, or its export was interrupted."
        )
    try:
        card = _Card.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        raise ArtifactError(f"{path} is not the card of a student; export the student again.") from error
    if card.labels != LABELS:
        raise ArtifactError(f"{path} has the labels {card.labels}; this version of the kit has {LABELS}.")
    for name, sha256 in card.sha256.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            raise ArtifactError(f"{folder / name} is missing or was altered; export the student again.")
    return OnnxStudent(folder, card, threads)


def _trace(student: Student, part: Path) -> None:
    """By torch's tracing exporter: 2 s, where the newer one takes half a minute for the same graph."""
    import torch

    class _Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = student.model.eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).logits
            return logits

    names = ["input_ids", "attention_mask"]
    pad = student.tokenizer.pad_token_id
    ids = torch.tensor(
        [[1, 2, 3, 4], [1, 2, pad, pad]]
    )  # two rows, one padded: nothing may count as constant
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # the tracer tells of every Python branch; the caller compares outputs
        torch.onnx.export(
            _Logits(),
            (ids, mask),
            str(part),
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=["logits"],
            dynamic_axes={name: {0: "pairs", 1: "tokens"} for name in names} | {"logits": {0: "pairs"}},
        )


def _quantise(model: Path, part: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, part, weight_type=QuantType.QInt8)
