"""Pictures as sellers hand them in: a path, bytes or base64; what cannot be read says why."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from pathlib import Path

from PIL import Image

MAX_BYTES = 20 * 2**20
LONGEST_PATH = 1024  # characters; a longer text is base64

_BASE64_STARTS = ("data:", "iVBORw0KGgo", "/9j/")  # of a data address, a PNG, a JPEG


def read_picture(value: object, folder: Path) -> tuple[bytes, str]:
    """The picture's bytes and "", or no bytes and the reason why there are none.

    Args:
        value: bytes, base64 text, a path inside `folder`, or a ``{"bytes": ..., "path": ...}`` of the
            library datasets.
        folder: paths are relative to it and may not leave it: sellers write them.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return verify_picture(value)
    if not isinstance(value, str) or not value.strip():
        return b"", "no picture"
    value = value.strip()
    if value.startswith(_BASE64_STARTS) or len(value) > LONGEST_PATH:
        return decode_picture(value)
    if value.startswith(("http://", "https://")):
        return b"", "picture is a web address; fetch it and give its path"
    try:
        path = (folder / value).resolve()
        if not path.is_relative_to(folder.resolve()):
            return b"", "picture path leaves the data folder"
        if not path.is_file():
            return b"", "picture file is not there"
        if path.stat().st_size > MAX_BYTES:
            return b"", f"picture has more than {MAX_BYTES // 2**20} MiB"
        return verify_picture(path.read_bytes())
    except (OSError, ValueError):  # no permission; a path with a null character
        return b"", "picture file cannot be opened"


def decode_picture(text: str) -> tuple[bytes, str]:
    """Like ``read_picture``, for base64 text with or without a ``data:image/...;base64,`` in front."""
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        return b"", "picture is no base64"
    return verify_picture(data)


def verify_picture(data: bytes) -> tuple[bytes, str]:
    """The bytes where they are a whole PNG or JPEG of a sane size, else the reason why not.

    A PNG's checksums are verified without decoding it. A JPEG has none: it is decoded at an eighth of its
    size, which reads it to the end.
    """
    if not data:
        return b"", "no picture"
    if len(data) > MAX_BYTES:
        return b"", f"picture has more than {MAX_BYTES // 2**20} MiB"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.format == "PNG":
                    image.verify()
                else:
                    image.draft("L", (1, 1))
                    image.load()
    except Exception:  # a decoder given hostile bytes may raise anything
        return b"", "picture cannot be read as PNG or JPEG"
    return data, ""
