"""What a picture shows, read from its pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from skimage.color import rgb2lab

from lore_lib.errors import DataError
from lore_lib.vertical.definition import Vertical

BACKGROUND_LEVEL = 250
"""Pixels whose three channels all reach this value (of 255) are background."""

MINIMUM_SHARE = 0.02
"""Share of foreground pixels under which the captioner abstains."""


class PixelCaptioner:
    """Names the main colour of a product picture: the shade nearest in CIELAB to the median foreground pixel.

    Args:
        vertical: supplies the shades and their RGB values.
    """

    name = "pixels"

    def __init__(self, vertical: Vertical) -> None:
        self._names = list(vertical.shades)
        self._lab = rgb2lab(np.array([list(vertical.shades.values())], dtype=np.uint8))[0]

    def __call__(self, png: bytes, item_id: str = "") -> str | None:
        """Shade name, or None when the picture shows next to nothing.

        Raises:
            DataError: the bytes are no picture.
        """
        try:
            pixels = np.asarray(Image.open(io.BytesIO(png), formats=("PNG", "JPEG")).convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all are PIL's
            raise DataError(
                f"item {item_id!r}: field 'picture' holds {len(png)} bytes that are no readable image; "
                "give PNG or JPEG bytes, or leave the field empty"
            ) from error
        foreground = pixels[(pixels < BACKGROUND_LEVEL).any(axis=-1)]
        if len(foreground) < MINIMUM_SHARE * pixels.shape[0] * pixels.shape[1]:
            return None
        main = rgb2lab(np.median(foreground, axis=0).astype(np.uint8).reshape(1, 1, 3))[0, 0]
        return self._names[int(np.linalg.norm(self._lab - main, axis=1).argmin())]
