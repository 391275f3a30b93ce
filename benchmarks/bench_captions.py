"""Speed and memory of captioning rendered pictures, beside naming the colour alone, pixel by pixel.

    python benchmarks/bench_captions.py [--largest 10000]

Items of `apparel_home`; beyond 2,000 their pictures come again, each decoded anew. ``colour alone`` is what
notebook 01 does by hand: every pixel votes for the nearest shade. ``PixelCaptioner`` tells colour, pattern,
and group. ``ways.py`` says what is measured.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image
from skimage.color import rgb2lab
from ways import print_table, sizes_asked

from lore_lib.features.captioner import PixelCaptioner
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.world import generate_tables

WAYS = ("colour alone", "PixelCaptioner")
DRAWN = 2_000


def pictures(vertical: Vertical, count: int) -> list[bytes]:
    tables = generate_tables(vertical, {"train": -(-min(count, DRAWN) // 4)}, 4, 0, 17)
    drawn = tables["items"].picture.tolist()
    return [drawn[at % len(drawn)] for at in range(count)]


def colour_of(png: bytes, names: list[str], shades: np.ndarray) -> str:
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    cloth = rgb2lab(pixels[(pixels < 250).any(axis=1)])
    votes = np.linalg.norm(cloth[:, None] - shades, axis=-1).argmin(axis=1)
    return names[int(np.bincount(votes).argmax())]


def colours(way: str, vertical: Vertical, pngs: list[bytes]) -> Counter[str | None]:
    """How often each colour was named."""
    if way == "PixelCaptioner":
        captioner = PixelCaptioner(vertical)
        return Counter(captioner.look(png).color for png in pngs)
    shades = rgb2lab(np.array([*vertical.shades.values()], dtype=np.uint8))
    return Counter(colour_of(png, [*vertical.shades], shades) for png in pngs)


def prepare(way: str, count: int) -> Callable[[], Counter[str | None]]:
    """The pictures, with every import done."""
    vertical = load_vertical("apparel_home")
    colours(way, vertical, pictures(vertical, 8))
    return functools.partial(colours, way, vertical, pictures(vertical, count))


if __name__ == "__main__":
    print_table(WAYS, sizes_asked(__doc__, 10_000), prepare, "pictures")
