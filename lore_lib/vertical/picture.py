"""Product pictures of the synthetic world: a silhouette filled with the item's true colour."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable

from PIL import Image, ImageDraw

from lore_lib.vertical.kinds import RGB

SIDE = 32
"""Width and height of a picture in pixels."""

BACKGROUND = (255, 255, 255)


def render_picture(rgb: RGB, outline: Iterable[tuple[int, int]]) -> bytes:
    """PNG bytes (32 x 32 RGB) of an item in colour ``rgb``, with slightly darker folds.

    Args:
        rgb: the colour, channels of 0 to 255.
        outline: corners (x, y) of the silhouette, from the vertical's ``world.silhouettes``.
    """
    return _render(rgb, tuple(outline))


@functools.lru_cache(maxsize=2**12)  # few colours and outlines make all the pictures of a world
def _render(rgb: RGB, outline: tuple[tuple[int, int], ...]) -> bytes:
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.polygon(outline, fill=rgb)
    shadow = tuple(int(0.85 * channel) for channel in rgb)
    for x in (11, 20):
        for y in range(14, 25):
            if image.getpixel((x, y)) == rgb:
                image.putpixel((x, y), shadow)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
