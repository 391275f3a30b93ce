"""Files of public data sets: fetched once, bounded in size, checked by SHA-256, whole or absent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from lore_lib.artifacts import atomic_write, atomic_write_text, file_sha256
from lore_lib.errors import ArtifactError


@dataclass(frozen=True)
class Remote:
    """A file on the web.

    Attributes:
        name: of the local file.
        url: an https address, pinned to a revision where the host has revisions.
        max_bytes: a longer answer is refused.
        sha256: hex digest where it is published, else ""; then the first download's is kept in
            ``<name>.sha256`` and later ones are compared with it.
    """

    name: str
    url: str
    max_bytes: int
    sha256: str = ""


def fetch_files(files: Sequence[Remote], folder: Path, client: httpx.Client | None = None) -> list[Path]:
    """Put the files into `folder`; those that are there and unaltered are left alone.

    Args:
        client: opens the connections and is closed at the end; by default one that follows redirects and
            waits 30 s for each step.

    Raises:
        ArtifactError: no network or a host's refusal (the message says which files to put where), an answer
            that is too long, or a wrong checksum. Whole files that came before stay.
    """
    with client or httpx.Client(follow_redirects=True, timeout=30) as session:
        try:
            return [_fetch(session, file, folder / file.name) for file in files]
        except httpx.HTTPError as error:
            raise ArtifactError(_by_hand(files, folder, error)) from error


def _fetch(session: httpx.Client, file: Remote, path: Path) -> Path:
    known = file.sha256 or _recorded(path)
    if not (path.is_file() and known and file_sha256(path) == known):
        atomic_write(path, lambda part: _download(session, file, known, part))
    if not known:
        atomic_write_text(_record(path), f"{file_sha256(path)}  {path.name}\n")
    return path


def _download(session: httpx.Client, file: Remote, known: str, part: Path) -> None:
    digest, size = hashlib.sha256(), 0
    with session.stream("GET", file.url) as answer, part.open("wb") as out:
        answer.raise_for_status()
        for chunk in answer.iter_bytes(2**20):
            size += len(chunk)
            if size > file.max_bytes:
                raise ArtifactError(
                    f"{file.url} sends more than the {file.max_bytes} bytes that {file.name} may have; "
                    "it is another file now, so nothing was kept"
                )
            digest.update(chunk)
            out.write(chunk)
    if known and digest.hexdigest() != known:
        raise ArtifactError(
            f"{file.url}: SHA-256 is {digest.hexdigest()}, not {known}; nothing was kept. Try again; if it "
            "stays so, the file was changed at its source"
        )


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str:
    record = _record(path)
    return record.read_text(encoding="utf-8").split(maxsplit=1)[0] if record.is_file() else ""


def _by_hand(files: Sequence[Remote], folder: Path, error: httpx.HTTPError) -> str:
    wanted = "".join(f"\n  {folder / file.name}  from {file.url}" for file in files)
    return (
        f"cannot download ({type(error).__name__}: {error}). Fetch these by hand on another machine:{wanted}"
    )
