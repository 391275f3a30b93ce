import errno
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lore_lib.artifacts import (
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
    Metric,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    file_sha256,
    outputs_root,
    project_root,
    read_jsonl,
    read_manifest,
    read_parquet,
    verify_files,
    write_jsonl,
    write_parquet,
)
from lore_lib.errors import ArtifactError


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "stage": "03_sft",
        "profile": "demo",
        "vertical": "v",
        "run": "r",
        "seed": 1,
        "config": {},
        "config_hash": "",
        "inputs": {},
        "files": {},
        "engines": {},
        "versions": {},
        "counts": {},
        "metrics": [],
        "seconds": 1.0,
        "peak_memory_mib": 1.0,
        "key": "k",
    }
    return Manifest.model_validate(fields | changes)


def test_the_project_root_is_found_from_inside_and_from_elsewhere(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORE_ROOT", raising=False)
    monkeypatch.chdir(root / "tests" / "unit")
    assert project_root() == root
    monkeypatch.chdir(tmp_path)
    assert project_root() == root
    monkeypatch.setenv("LORE_ROOT", str(tmp_path))
    assert project_root() == tmp_path


@pytest.mark.parametrize("text", [b"not toml [", b'project = "x"', b"\xff"])
def test_a_foreign_project_on_the_way_up_is_passed_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    monkeypatch.delenv("LORE_ROOT", raising=False)
    (tmp_path / "pyproject.toml").write_bytes(text)
    monkeypatch.chdir(tmp_path)
    assert project_root() == root


def test_outputs_are_in_the_project_unless_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORE_OUTPUTS", raising=False)
    assert outputs_root() == root / "outputs"
    monkeypatch.setenv("LORE_OUTPUTS", str(tmp_path))
    assert outputs_root() == tmp_path


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = atomic_write_text(tmp_path / "a.txt", "old")

    def torn(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(path, b"new text")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "LORE_OUTPUTS"),
        (errno.EACCES, "chmod"),
    ],
)
@pytest.mark.parametrize("place", ["replace", "write_bytes", "mkdir"])
def test_disk_errors_name_the_file_and_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fix: str, place: str
) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, place, refuse)
    with pytest.raises(ArtifactError) as caught:
        atomic_write_bytes(tmp_path / "folder" / "a.bin", b"x")
    assert fix in str(caught.value)
    assert "folder" in str(caught.value)


def test_a_name_that_cannot_be_a_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file, not a folder")
    with pytest.raises(ArtifactError, match="a file stands where a folder should be"):
        atomic_write_bytes(tmp_path / "a" / "b", b"x")
    with pytest.raises(ArtifactError, match="shorter name"):
        atomic_write_bytes(tmp_path / ("a" * 300) / "b", b"x")


def test_other_os_errors_are_not_dressed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        atomic_write_bytes(tmp_path / "a", b"x")


def test_json_refuses_what_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_tables_and_rows_come_back_as_they_were(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["é", ""]}, index=[5, 6])
    back = read_parquet(write_parquet(frame, tmp_path / "t.parquet"))
    pd.testing.assert_frame_equal(back, frame.reset_index(drop=True))
    rows = [{"query": "帽子", "n": 1}, {}]
    assert read_jsonl(write_jsonl(tmp_path / "r.jsonl", rows)) == rows


def test_damaged_tables_and_rows_are_named(tmp_path: Path) -> None:
    table = write_parquet(pd.DataFrame({"a": range(100)}), tmp_path / "t.parquet")
    table.write_bytes(table.read_bytes()[:50])
    with pytest.raises(ArtifactError, match=r"t\.parquet is not a whole Parquet file"):
        read_parquet(table)
    about_pandas = {b"pandas": b'{"columns": [{"pandas_type": 1}], "index_columns": []}'}
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(about_pandas), table)
    with pytest.raises(ArtifactError, match="not a whole Parquet file"):
        read_parquet(table)
    with pytest.raises(ArtifactError, match="no table at"):
        read_parquet(tmp_path / "none.parquet")
    rows = tmp_path / "r.jsonl"
    rows.write_text('{"a": 1}\n\n{"a": ')
    with pytest.raises(ArtifactError, match="line 3 is not JSON"):
        read_jsonl(rows)
    rows.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(ArtifactError, match="line 2 is not JSON"):
        read_jsonl(rows)
    rows.write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="line 1 is not JSON"):
        read_jsonl(rows)
    rows.write_text("[1]\n")
    with pytest.raises(ArtifactError, match="line 1 is a list"):
        read_jsonl(rows)
    with pytest.raises(ArtifactError, match="no rows at"):
        read_jsonl(tmp_path / "none.jsonl")


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    metric = Metric(name="pass@1 | naive", value=0.5, low=0.4, high=0.6, n=48, seeds=(0, 1))
    written = manifest(metrics=[metric], counts={"pairs": 48})
    written.write(tmp_path)
    assert read_manifest(tmp_path) == written


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"schema_version": SCHEMA_VERSION - 1},
            f"schema_version 0; this version of the kit writes {SCHEMA_VERSION}",
        ),
        ({"seconds": "long"}, "wrong fields: seconds"),
        ({"surprise": 1}, "wrong fields: surprise"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = manifest().write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=says):
        read_manifest(tmp_path)


def test_no_manifest_and_half_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has not run, or was interrupted"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 1,')
    with pytest.raises(ArtifactError, match="is not JSON"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="is not JSON"):
        read_manifest(tmp_path)


def test_every_damaged_file_is_named(tmp_path: Path) -> None:
    for name in ("kept", "gone", "short", "other"):
        (tmp_path / name).write_text("content")
    files = {
        name: FileEntry(sha256=file_sha256(tmp_path / name), bytes=7)
        for name in ("kept", "gone", "short", "other")
    }
    verify_files(tmp_path, manifest(files=files))
    (tmp_path / "gone").unlink()
    (tmp_path / "short").write_text("cont")
    (tmp_path / "other").write_text("CONTENT")
    with pytest.raises(ArtifactError) as caught:
        verify_files(tmp_path, manifest(files=files))
    assert "gone is missing" in str(caught.value)
    assert "short has 4 bytes, 7 were written" in str(caught.value)
    assert "other was altered" in str(caught.value)
    assert "kept" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_is_a_finite_number(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Metric(name="x", value=value, n=1)
