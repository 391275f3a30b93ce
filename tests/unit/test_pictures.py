"""Pictures of sellers: a path, bytes or base64, whole or not at all."""

import base64
import io
import random
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from lore_lib.vertical.adapters.pictures import decode_picture, read_picture, verify_picture


def picture(kind: str) -> bytes:
    pixels = random.Random(5).randbytes(64 * 64 * 3)
    out = io.BytesIO()
    Image.frombytes("RGB", (64, 64), pixels).save(out, kind)
    return out.getvalue()


def huge_png() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_way_to_hand_in_a_picture_gives_its_bytes(tmp_path: Path, kind: str) -> None:
    data = picture(kind)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.img").write_bytes(data)
    text = base64.b64encode(data).decode()
    for value in (
        data,
        text,
        f" {text[:70]}\n{text[70:]} ",
        f"data:image/{kind.lower()};base64,{text}",
        "a/b.img",
        {"bytes": data, "path": None},
        {"bytes": None, "path": "a/b.img"},
    ):
        assert read_picture(value, tmp_path) == (data, "")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_cut_picture_is_refused(kind: str, share: float) -> None:
    data = picture(kind)
    assert verify_picture(data[: int(len(data) * share)]) == (b"", "picture cannot be read as PNG or JPEG")


def test_a_flipped_byte_of_a_png_is_seen() -> None:
    data = bytearray(picture("PNG"))
    data[len(data) // 2] ^= 1
    assert verify_picture(bytes(data)) == (b"", "picture cannot be read as PNG or JPEG")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no picture"),
        (float("nan"), "no picture"),
        ("", "no picture"),
        (b"", "no picture"),
        ("gone.png", "picture file is not there"),
        ("../secret.png", "picture path leaves the data folder"),
        ("/etc/hostname", "picture path leaves the data folder"),
        ("a\0b", "picture file cannot be opened"),
        ("https://shop.example/1.png", "picture is a web address; fetch it and give its path"),
        ("iVBORw0KGgo*", "picture is no base64"),
        ("data:image/png;base64,", "no picture"),
        (b"GIF89a", "picture cannot be read as PNG or JPEG"),
        (huge_png(), "picture cannot be read as PNG or JPEG"),
        (b"\xff\xd8" + b"x" * (21 * 2**20), "picture has more than 20 MiB"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, value: object, reason: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(picture("PNG"))
    assert read_picture(value, tmp_path / "data") == (b"", reason)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(picture("PNG"))
    (tmp_path / "data" / "mine.png").symlink_to(tmp_path / "secret.png")
    assert read_picture("mine.png", tmp_path / "data") == (b"", "picture path leaves the data folder")


def test_other_formats_are_refused() -> None:
    assert (
        decode_picture(base64.b64encode(picture("BMP")).decode())[1]
        == "picture cannot be read as PNG or JPEG"
    )
