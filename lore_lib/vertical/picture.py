"""Product pictures of the synthetic world: a silhouette per group, filled with the item's true colour."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw

SIDE = 32
"""Width and height of a picture in pixels."""

BACKGROUND = (255, 255, 255)

_SILHOUETTES: dict[str, list[tuple[int, int]]] = {
    "dresses": [(12, 3), (20, 3), (19, 13), (26, 29), (6, 29), (13, 13)],
    "tops": [(9, 5), (23, 5), (29, 13), (24, 16), (23, 28), (9, 28), (8, 16), (3, 13)],
    "bottoms": [(9, 3), (23, 3), (25, 29), (18, 29), (16, 12), (14, 29), (7, 29)],
    "outerwear": [(8, 4), (24, 4), (30, 24), (25, 25), (24, 30), (8, 30), (7, 25), (2, 24)],
    "shoes": [(4, 10), (12, 10), (17, 18), (28, 20), (29, 26), (4, 26)],
    "bags": [(6, 12), (11, 12), (13, 5), (19, 5), (21, 12), (26, 12), (28, 28), (4, 28)],
    "bedding": [(3, 9), (29, 9), (29, 27), (3, 27)],
    "living": [(5, 3), (27, 3), (25, 29), (7, 29)],
}


def render_picture(rgb: tuple[int, int, int], group: str) -> bytes:
    """PNG bytes (32 x 32 RGB) of an item of ``group`` in colour ``rgb``, with slightly darker folds."""
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.polygon(_SILHOUETTES.get(group, _SILHOUETTES["bedding"]), fill=rgb)
    shadow = tuple(int(0.85 * channel) for channel in rgb)
    for x in (11, 20):
        for y in range(14, 25):
            if image.getpixel((x, y)) == rgb:
                image.putpixel((x, y), shadow)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
