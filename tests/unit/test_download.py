"""Downloads against a made-up host: whole, checked and bounded, or not there at all."""

import hashlib
from pathlib import Path

import httpx
import pytest

from lore_lib.errors import ArtifactError
from lore_lib.vertical.adapters.download import Remote, fetch_files

BODY = b"query_id\tquery\n0\tlamp\n"
DIGEST = hashlib.sha256(BODY).hexdigest()


class Host:
    """Answers every request with one body and counts the requests."""

    def __init__(self, body: bytes = BODY, status: int = 200) -> None:
        self.body, self.status, self.requests = body, status, 0

    def client(self) -> httpx.Client:
        def answer(request: httpx.Request) -> httpx.Response:
            self.requests += 1
            return httpx.Response(self.status, content=self.body)

        return httpx.Client(transport=httpx.MockTransport(answer))


def remote(sha256: str = DIGEST, max_bytes: int = 1000) -> Remote:
    return Remote("query.csv", "https://data.example/query.csv", max_bytes, sha256)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_file_is_fetched_once_and_again_when_it_was_altered(tmp_path: Path) -> None:
    host = Host()
    assert fetch_files([remote()], tmp_path / "new", host.client()) == [tmp_path / "new" / "query.csv"]
    fetch_files([remote()], tmp_path / "new", host.client())
    assert host.requests == 1
    (tmp_path / "new" / "query.csv").write_bytes(b"altered")
    fetch_files([remote()], tmp_path / "new", host.client())
    assert host.requests == 2
    assert (tmp_path / "new" / "query.csv").read_bytes() == BODY
    assert names(tmp_path / "new") == ["query.csv"]


def test_an_unknown_checksum_is_recorded_and_compared_later(tmp_path: Path) -> None:
    fetch_files([remote(sha256="")], tmp_path, Host().client())
    assert (tmp_path / "query.csv.sha256").read_text() == f"{DIGEST}  query.csv\n"
    (tmp_path / "query.csv").unlink()
    with pytest.raises(ArtifactError, match=f"not {DIGEST}"):
        fetch_files([remote(sha256="")], tmp_path, Host(b"another file").client())
    assert names(tmp_path) == ["query.csv.sha256"]


@pytest.mark.parametrize(
    ("host", "file", "says"),
    [
        (Host(b"evil"), remote(), "SHA-256 is .* nothing was kept"),
        (Host(b"x" * 2000), remote(), "more than the 1000 bytes"),
    ],
)
def test_a_wrong_answer_leaves_nothing_behind(tmp_path: Path, host: Host, file: Remote, says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        fetch_files([file], tmp_path, host.client())
    assert names(tmp_path) == []


def test_without_a_network_the_error_says_which_files_to_put_where(tmp_path: Path) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("name or service not known")

    for client in (httpx.Client(transport=httpx.MockTransport(broken)), Host(status=404).client()):
        with pytest.raises(ArtifactError) as caught:
            fetch_files([remote()], tmp_path / "data", client)
        assert f"{tmp_path / 'data' / 'query.csv'}  from https://data.example/query.csv" in str(caught.value)
        assert names(tmp_path / "data") == []
