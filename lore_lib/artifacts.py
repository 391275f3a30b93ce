"""Files of a run: whole or absent, hashed, described by a manifest that is written last."""

import errno
import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lore_lib.errors import ArtifactError

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
PART_SUFFIX = ".part"  # of files being written; one left over by a kill is never counted

_FIXES = {
    errno.ENOSPC: "free space on that disk, or point LORE_OUTPUTS at a folder on another one",
    errno.EDQUOT: "your disk quota is used up; free space, or point LORE_OUTPUTS at another disk",
    errno.EROFS: "the disk is mounted read-only; point LORE_OUTPUTS at a folder you may write to",
    errno.EACCES: "give yourself write permission (chmod u+w), or point LORE_OUTPUTS at a folder of your own",
    errno.EPERM: "give yourself write permission (chmod u+w), or point LORE_OUTPUTS at a folder of your own",
    errno.ENOTDIR: "a file stands where a folder should be; move it away, or choose another folder",
    errno.EEXIST: "a file stands where a folder should be; move it away, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOLCK: "that disk has no file locks; point LORE_OUTPUTS at a folder on another one",
    errno.ENOSYS: "that disk has no file locks; point LORE_OUTPUTS at a folder on another one",
}


def _is_root(folder: Path) -> bool:
    marker = folder / "pyproject.toml"
    if not marker.is_file():
        return False
    try:
        project = tomllib.loads(marker.read_text(encoding="utf-8")).get("project")
    except (OSError, ValueError):  # of somebody else's project: not this one
        return False
    return isinstance(project, dict) and project.get("name") == "lore-kit"


def project_root() -> Path:
    """The folder that holds this project's pyproject.toml.

    LORE_ROOT wins; else the nearest marked folder upward from the working directory; else from this file.

    Raises:
        ArtifactError: no folder on the way up is marked.
    """
    if given := os.environ.get("LORE_ROOT"):
        return Path(given).resolve()
    here, source = Path.cwd().resolve(), Path(__file__).resolve()
    for folder in [here, *here.parents, *source.parents]:
        if _is_root(folder):
            return folder
    raise ArtifactError(
        f"no project root above {here}: no pyproject.toml there names 'lore-kit'. "
        "Run from inside the cloned repository, or set LORE_ROOT to it."
    )


def outputs_root() -> Path:
    """Where runs are written: LORE_OUTPUTS, else <project root>/outputs."""
    given = os.environ.get("LORE_OUTPUTS")
    return Path(given).resolve() if given else project_root() / "outputs"


@contextmanager
def explain_disk(path: Path) -> Iterator[None]:
    """Turn a disk error met while writing `path` into an ArtifactError that names the fix."""
    try:
        yield
    except OSError as error:
        fix = _FIXES.get(error.errno or 0)
        if fix is None:
            raise
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}. Fix: {fix}.") from error


def make_folder(path: Path) -> Path:
    """Make the folder and its parents; returns it."""
    with explain_disk(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def put_in_place(part: Path, path: Path) -> None:
    """Move a written file to its name, once the disk has all of it."""
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    part.replace(path)


def atomic_write(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary sibling, then put it in place in one step; returns `path`.

    A crash at any moment leaves either the old file or the new one, never a part of it.
    """
    make_folder(path.parent)
    with explain_disk(path):
        part = path.with_name(f".{path.name}.{os.getpid()}{PART_SUFFIX}")
        try:
            write(part)
            put_in_place(part, path)
        finally:
            part.unlink(missing_ok=True)
    return path


def atomic_write_bytes(path: Path, data: bytes) -> Path:
    """Write `data` whole or not at all."""
    return atomic_write(path, lambda part: part.write_bytes(data))


def atomic_write_text(path: Path, text: str) -> Path:
    """Write UTF-8 `text` whole or not at all."""
    return atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON (NaN and infinity are refused: JSON has neither)."""
    return atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON value.

    Raises:
        ArtifactError: the file cannot be read, or is not JSON in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}).") from error


def write_parquet(frame: pd.DataFrame, path: Path) -> Path:
    """Write the frame without its index, whole or not at all."""
    return atomic_write(path, lambda part: frame.to_parquet(part, index=False))


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a table written by `write_parquet`.

    Raises:
        ArtifactError: the file is absent or is not a whole Parquet file.
    """
    if not path.is_file():
        raise ArtifactError(f"no table at {path}. Run the stage that writes it.")
    try:
        return pd.read_parquet(path)
    except Exception as error:  # what a damaged file says of its own columns makes pandas raise anything
        raise ArtifactError(
            f"{path} is not a whole Parquet file ({error}). Make it again with what wrote it."
        ) from error


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write one JSON object per line, reading `rows` as a stream."""

    def fill(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    return atomic_write(path, fill)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line; blank lines are passed over.

    Raises:
        ArtifactError: the file is absent, or a line is not a JSON object (its number is named).
    """
    if not path.is_file():
        raise ArtifactError(f"no rows at {path}. Run the stage that writes them.")
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise ArtifactError(
                    f"{path} line {number} is not JSON ({error}). Make it again with what wrote it."
                ) from error
            if not isinstance(row, dict):
                raise ArtifactError(f"{path} line {number} is a {type(row).__name__}, not a JSON object.")
            rows.append(row)
    return rows


def read_reference(name: str) -> Any:
    """Rows of an experiment that was run once and is kept in ``outputs/reference``.

    Args:
        name: of the file, without ``.json``.
    """
    path = project_root() / "outputs" / "reference" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Metric(BaseModel):
    """One measured number, with what is needed to trust it. Name it "<estimator> | <system>"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float = Field(allow_inf_nan=False)
    low: float | None = Field(default=None, allow_inf_nan=False)  # 95 % interval, same unit as value
    high: float | None = Field(default=None, allow_inf_nan=False)
    n: int = Field(ge=0)  # units the value is a mean over (pairs, queries, requests)
    seeds: tuple[int, ...] = ()  # training or sampling seeds it is averaged over
    note: str = ""


class FileEntry(BaseModel):
    """Fingerprint of one file of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """What a stage did. Its presence means that the stage's folder is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    stage: str
    profile: str
    vertical: str
    run: str
    seed: int
    config: dict[str, Any]
    config_hash: str
    inputs: dict[str, str]  # stage -> results_sha256 of its manifest
    files: dict[str, FileEntry]  # path relative to the stage folder
    engines: dict[str, str]  # role -> engine, mocks included
    versions: dict[str, str]
    counts: dict[str, int]
    metrics: list[Metric]
    seconds: float
    peak_memory_mib: float
    key: str

    def results_sha256(self) -> str:
        """One fingerprint for all the files of the stage: made again, the same results have the same one."""
        files = {name: entry.sha256 for name, entry in self.files.items()}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> Path:
        """Write manifest.json into `folder`; call it last."""
        return atomic_write_json(folder / MANIFEST, self.model_dump(mode="json"))


def read_manifest(folder: Path) -> Manifest:
    """Read and check the shape of a stage's manifest.

    Raises:
        ArtifactError: absent, not JSON, of another schema version, or lacking fields.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"no {MANIFEST} in {folder}: the stage has not run, or was interrupted.")
    raw = read_json(path)
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema_version {found}; this version of the kit writes {SCHEMA_VERSION}."
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise ArtifactError(f"{path} is not a manifest; wrong fields: {fields}.") from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare each file with its fingerprint.

    Raises:
        ArtifactError: a file is missing, truncated or altered (all of them are named).
    """
    faults = []
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif (size := path.stat().st_size) != entry.bytes:
            faults.append(f"{name} has {size} bytes, {entry.bytes} were written")
        elif file_sha256(path) != entry.sha256:
            faults.append(f"{name} was altered after it was written")
    if faults:
        raise ArtifactError(f"{folder}: {'; '.join(faults)}.")
