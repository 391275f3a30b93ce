"""Product pictures of the synthetic world: a silhouette with a pattern in a second colour and a small mark.

Everything is drawn by the pixel inside the bounding box of the silhouette, so that each outline shows a whole
piece of the pattern, and the same item always gives the same bytes.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.color import lab2rgb, rgb2lab

from lore_lib.vertical.kinds import RGB

SIDE = 32
"""Width and height of a picture in pixels."""

BACKGROUND = 255
"""Level of all three channels around the item."""

DARK = 40
"""CIELAB lightness L* under which a colour's second tones are lighter, not darker, than itself."""

PATTERN_STEP, MARK_STEP = 40, 14
"""Steps in L* from the item's colour to those of its pattern and its mark."""

_Pixels = NDArray[np.int_]
_Drawing = Callable[[_Pixels, _Pixels], NDArray[np.bool_]]

_PATTERNS: dict[str, _Drawing] = {  # x, y in pixels from the corner of the bounding box -> the second colour
    "plain": lambda x, y: np.zeros_like(x, dtype=bool),
    "striped": lambda x, y: y % 6 // 2 == 1,
    "dotted": lambda x, y: (x % 3 != 0) & (y % 3 != 0) & (x // 3 % 2 == y // 3 % 2),
    "checked": lambda x, y: (x % 6 == 2) | (y % 6 == 2),
}

_STRUCTURES: dict[str, _Drawing] = {  # x, y in pixels from the middle of the bounding box -> the mark
    "bare": lambda x, y: np.zeros_like(x, dtype=bool),
    "buttons": lambda x, y: (x // 2 == 0) & (y % 4 // 2 == 0),
    "zip": lambda x, y: x == 0,
    "pockets": lambda x, y: (abs(abs(2 * x + 1) - 9) <= 2) & (y // 3 == 0),
    "band": lambda x, y: y // 2 == 0,
}

STRUCTURES = tuple(_STRUCTURES)
"""Marks that tell the categories of a group apart, by their position in the group."""


def render_picture(
    rgb: RGB, outline: Iterable[tuple[int, int]], pattern: str = "plain", structure: str = "bare"
) -> bytes:
    """PNG bytes (32 x 32 RGB) of an item in colour ``rgb`` on white.

    Args:
        rgb: the main colour, channels of 0 to 255; more than half of the silhouette keeps it.
        outline: corners (x, y) of the silhouette, from the vertical's ``world.silhouettes``.
        pattern: one of :data:`lore_lib.vertical.kinds.PATTERNS`, drawn in a lighter tone of a dark colour or
            a darker tone of a light one.
        structure: one of :data:`STRUCTURES`, drawn over the pattern in a tone nearer to the main colour.
    """
    return _render(rgb, tuple(outline), pattern, structure)


@functools.lru_cache(maxsize=2**12)  # few colours, outlines and patterns make all the pictures of a world
def _render(rgb: RGB, outline: tuple[tuple[int, int], ...], pattern: str, structure: str) -> bytes:
    body = silhouette(outline)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    left, right, top, bottom = x[body].min(), x[body].max(), y[body].min(), y[body].max()
    patterned = _PATTERNS[pattern](x - left, y - top)
    marked = _STRUCTURES[structure](x - (left + right) // 2, y - (top + bottom) // 2)

    pixels = np.full((SIDE, SIDE, 3), BACKGROUND, dtype=np.uint8)
    pixels[body] = rgb
    pixels[body & patterned] = _tone(rgb, PATTERN_STEP)
    pixels[body & marked] = _tone(rgb, MARK_STEP)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def silhouette(outline: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which pixels lie inside the outline: (32, 32)."""
    image = Image.new("1", (SIDE, SIDE))
    ImageDraw.Draw(image).polygon(list(outline), fill=1)
    return np.asarray(image)


def _tone(rgb: RGB, step: int) -> NDArray[Any]:
    """The same hue, lighter or darker by ``step`` of CIELAB lightness."""
    lab = rgb2lab(np.array(rgb, dtype=np.uint8))
    lab[0] += step if lab[0] < DARK else -step
    with warnings.catch_warnings(action="ignore"):  # strong dark hues lie outside of sRGB and are clipped
        return np.asarray(np.rint(255 * lab2rgb(lab)))
