"""The student as an ONNX file: the same answers, and no other file than the one that was written."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lore_lib.errors import ArtifactError, EngineError
from lore_lib.serving import export
from lore_lib.serving.calibration import temper
from lore_lib.serving.export import CARD, MODEL, TOKENIZER, export_student, load_onnx_student
from lore_lib.serving.student import Student, train_student
from lore_lib.vertical.schema import LABELS

PROMPTS = ["query: red dress\ntitle: dress", "query: oak shelf", "q", "query: red dress\ntitle: dress " * 12]


@pytest.fixture(scope="module")
def student(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    rows = pd.DataFrame({"prompt": PROMPTS[:2] * 8, **dict.fromkeys(LABELS, 0.25)})
    rows.loc[::2, list(LABELS)] = (0, 0, 0, 1)
    return train_student(
        str(tiny_model),
        rows,
        tmp_path_factory.mktemp("trainer"),
        epochs=3,
        seed=0,
        max_tokens=32,
        learning_rate=5e-3,
    )


@pytest.fixture(scope="module")
def exported(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    export_student(student, folder, PROMPTS, temperature=2.0)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_it_says_what_the_student_says(student: Student, exported: Path) -> None:
    expected = temper(student.predict_proba(PROMPTS), 2.0)
    onnx = load_onnx_student(exported)
    assert onnx.predict_proba(PROMPTS) == pytest.approx(expected, abs=1e-4)
    alone = np.concatenate([onnx.predict_proba([prompt]) for prompt in PROMPTS])
    assert alone == pytest.approx(expected, abs=1e-4), "neither batch nor padding nor cut changes an answer"
    assert onnx.predict(PROMPTS) == student.predict(PROMPTS)
    assert onnx.predict_proba([]).shape == (0, 4)
    assert len(set(onnx.predict(PROMPTS[:2]))) == 2 or expected[0].argmax() == expected[1].argmax()


def test_eight_bits_are_smaller_and_near(student: Student, exported: Path, tmp_path: Path) -> None:
    small = export_student(student, tmp_path, PROMPTS, int8=True)
    assert (tmp_path / MODEL).stat().st_size < 0.6 * (exported / MODEL).stat().st_size
    assert small.predict_proba(PROMPTS) == pytest.approx(student.predict_proba(PROMPTS), abs=0.1)
    assert json.loads((tmp_path / CARD).read_text())["weights"] == "int8"


@pytest.mark.parametrize("name", [MODEL, TOKENIZER])
def test_an_altered_file_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=f"{name}.*altered"):
        load_onnx_student(copy)


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, CARD])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        load_onnx_student(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"temperature": 0}'])
def test_a_card_that_is_none_is_refused(copy: Path, text: str) -> None:
    (copy / CARD).write_text(text)
    with pytest.raises(ArtifactError, match="card"):
        load_onnx_student(copy)


def test_labels_of_another_version_are_refused(copy: Path) -> None:
    card = json.loads((copy / CARD).read_text())
    (copy / CARD).write_text(json.dumps(card | {"labels": ["L1", "L2"]}))
    with pytest.raises(ArtifactError, match="labels"):
        load_onnx_student(copy)


def test_what_onnx_runtime_cannot_read_is_an_error(copy: Path) -> None:
    (copy / MODEL).write_bytes(b"no model")
    card = json.loads((copy / CARD).read_text())
    card["sha256"][MODEL] = export.file_sha256(copy / MODEL)
    (copy / CARD).write_text(json.dumps(card))
    with pytest.raises(EngineError, match="ONNX Runtime"):
        load_onnx_student(copy)


def test_an_export_that_differs_leaves_no_card(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "FURTHEST", -1.0)
    with pytest.raises(EngineError, match="differs from the student"):
        export_student(student, tmp_path, PROMPTS)
    assert not (tmp_path / CARD).exists()


def test_an_export_says_nothing(student: Student, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_student(student, tmp_path, PROMPTS)
    assert capfd.readouterr() == ("", "")
