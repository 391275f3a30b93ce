"""What a picture shows, read from its pixels."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

from lore_lib.errors import DataError
from lore_lib.vertical.definition import COLOR, Vertical
from lore_lib.vertical.picture import SIDE, silhouette

LONGEST = 128
"""Pixels of the longer side at which a picture is looked at; larger ones are made smaller first."""

UNEVEN = 15.0
"""Median distance in CIELAB of the border's pixels from their median over which there is no background."""

BLANK_SHARE = 0.02
"""Share of pixels off the background under which there is no item."""

SECOND_COLOR = 27.0
"""Distance in CIELAB from the main colour beyond which a pixel has another colour, not another light."""

FULL_PATTERN = 0.16
"""Share of the item in another colour from which on it is surely not plain."""

FAR = 60.0
"""Distance in CIELAB of the main colour from the nearest shade at which nothing is left of the confidence."""

SURE = 0.5
"""Confidence under which a field abstains."""

_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Look:
    """What a picture shows; a field is None where the captioner abstains.

    Attributes:
        shares: shade -> share of the item's pixels that are nearest to it; largest first, empty for a blank.
        color: the shade with the largest share.
        pattern: one of :data:`lore_lib.vertical.kinds.PATTERNS`.
        group: the group of categories whose outline fits best.
        confidence: "color", "pattern", "group" -> 0 to 1, also of what was guessed and not told.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    color: str | None = None
    pattern: str | None = None
    group: str | None = None
    confidence: Mapping[str, float] = field(
        default_factory=lambda: dict.fromkeys(("color", "pattern", "group"), 0.0)
    )


class PixelCaptioner:
    """Reads colour, pattern and silhouette of one item before an even background.

    * The background is the median colour of the border, the item is what differs from it in CIELAB.
    * Colour: each pixel goes to the nearest named shade, and the shades are counted. That is one step of
      k-means whose centres are the shades: there is nothing to iterate, and no k to choose.
    * Pattern: what lies off the main colour forms stripes where rows alone (or columns alone) explain it,
      checks where rows and columns explain it together, and dots where it falls into islands of like size.
    * Group: the outline of the vertical's world with the largest intersection over union.

    It is made for pictures of the synthetic world; a photograph with shadows or folds may mislead it.

    Args:
        vertical: supplies the shades with their RGB, the outlines, and the order of the caption.
    """

    name = "pixels"

    def __init__(self, vertical: Vertical) -> None:
        self._pictured = {dimension: vertical.values(dimension) for dimension in vertical.pictured}
        self._shades = list(vertical.shades) or [""]
        rgb = list(vertical.shades.values()) or [(0, 0, 0)]
        self._lab = rgb2lab(np.array(rgb, dtype=np.uint8)).T
        self._nearest = _distance(_lab_table()[..., None], self._lab[:, None]).argmin(axis=1)
        outlines = vertical.world.silhouettes if vertical.world else {}
        self._groups = list(outlines)
        masks = [mask[_box(mask)] for mask in map(silhouette, outlines.values())]
        both_ways = [_framed(way).ravel() for mask in masks for way in (mask, mask[:, ::-1])]
        self._outlines = np.array(both_ways, dtype=np.float32)

    def __call__(self, png: bytes, item_id: str = "") -> str | None:
        """The values of ``vertical.pictured``, in this order, joined by ", "; None unless all were seen.

        A caption is whole or absent: a value that stood in for an unseen one would overrule what the seller
        says. :meth:`look` has the rest.

        Raises:
            DataError: the bytes are no picture.
        """
        look = self.look(png, item_id)
        seen = [look.color if dimension == COLOR else look.pattern for dimension in self._pictured]
        if seen and all(value in known for value, known in zip(seen, self._pictured.values(), strict=True)):
            return ", ".join(map(str, seen))
        return None

    def look(self, png: bytes, item_id: str = "") -> Look:
        """All that the picture shows.

        Args:
            png: PNG or JPEG bytes.
            item_id: named in the error.

        Raises:
            DataError: the bytes are no picture.
        """
        code = _read(png, item_id)
        lab = _lab_table().take(code, axis=1)
        item = _off_background(lab)
        if np.count_nonzero(item) < BLANK_SHARE * item.size:
            return Look()
        box = _box(item)
        code, lab, item = code[box], lab[:, *box], item[box]

        shade = self._nearest.take(code)
        shares = np.bincount(shade[item], minlength=len(self._shades)) / item.sum()
        order = np.argsort(-shares, kind="stable")
        main = _median(lab[:, item & (shade == order[0])])
        fit = 1 - _distance(main, self._lab[:, order[0]]) / FAR
        lead = shares[order[0]] / shares[order[:2]].sum()

        inside = _without_rim(item)
        patterns = _patterns(inside & (_distance(lab, main[:, None, None]) > SECOND_COLOR), inside)
        pattern = max(patterns, key=lambda name: patterns[name])
        group, resemblance = self._group(item)
        confidence = {
            "color": max(0.0, float(lead * fit)),
            "pattern": patterns[pattern],
            "group": resemblance,
        }
        return Look(
            {self._shades[at]: float(shares[at]) for at in order if shares[at] > 0},
            self._shades[order[0]] if confidence["color"] >= SURE else None,
            pattern if confidence["pattern"] >= SURE else None,
            group if resemblance >= SURE else None,
            confidence,
        )

    def _group(self, item: _Mask) -> tuple[str, float]:
        """The group that fits best, either way round, and how far it leads from the next to a perfect fit."""
        if not self._groups:
            return "", 0.0
        frame = _framed(item).ravel().astype(np.float32)
        overlap = self._outlines @ frame
        union = self._outlines.sum(axis=1) + frame.sum() - overlap
        fits = (overlap / union).reshape(-1, 2).max(axis=1)
        *_, second, best = 0.0, *sorted(fits)
        return self._groups[int(fits.argmax())], float((best - second) / (1 - second)) if second < 1 else 0.0


@functools.cache
def _lab_table() -> NDArray[np.float32]:
    """CIELAB of the middles of all 32^3 cells of 8 levels a channel: (3, 32768)."""
    level = np.arange(4, 256, 8, dtype=np.uint8)
    cells = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.ascontiguousarray(rgb2lab(cells).T, dtype=np.float32)


def _read(png: bytes, item_id: str) -> NDArray[np.intp]:
    """The column of :func:`_lab_table` for each pixel of the picture on white: (height, width)."""
    try:
        with Image.open(io.BytesIO(png), formats=("PNG", "JPEG")) as file:
            file.thumbnail((LONGEST, LONGEST))  # a JPEG is even decoded at a smaller size
            image: Image.Image = file
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.intp) >> 3, -1, 0)
    except Exception as error:  # a decoder given hostile bytes may raise anything
        raise DataError(
            f"item {item_id!r}: field 'picture' holds {len(png)} bytes that are no readable image; "
            "give PNG or JPEG bytes, or leave the field empty"
        ) from error
    code: NDArray[np.intp] = (red * 32 + green) * 32 + blue
    return code


def _off_background(lab: NDArray[np.float32]) -> _Mask:
    """Pixels that differ from the median colour of the border by more than the border itself varies."""
    border = np.concatenate([lab[:, 0], lab[:, -1], lab[:, :, 0], lab[:, :, -1]], axis=1)
    background = _median(border)
    unevenness = _median(_distance(border, background[:, None]))
    if unevenness > UNEVEN:
        return np.zeros(lab.shape[1:], dtype=bool)
    differs: _Mask = _distance(lab, background[:, None, None]) > 10 + 2 * unevenness
    return differs


def _without_rim(item: _Mask) -> _Mask:
    """The item without the pixels near its outline, where its colours run into the background's.

    Nothing is left of an item that is mostly outline: its mask is in shreds.
    """
    rim = 1 + max(item.shape) // 48
    inside = np.zeros_like(item)
    rows, columns = slice(rim, -rim), slice(rim, -rim)
    inside[rows, columns] = (
        item[rows, columns]
        & item[2 * rim :, columns]
        & item[: -2 * rim, columns]
        & item[rows, 2 * rim :]
        & item[rows, : -2 * rim]
    )
    return inside if 2 * np.count_nonzero(inside) > np.count_nonzero(item) else np.zeros_like(item)


def _patterns(second: _Mask, item: _Mask) -> dict[str, float]:
    """Pattern -> confidence that the pixels off the main colour form it."""
    share = second.sum() / max(1, item.sum())
    if not 0 < share < 0.5:  # nothing, or more than the main colour
        return {"plain": float(share == 0 and item.any())}
    (less, few), (more, many) = sorted(_bands(second, item, axis) for axis in (0, 1))
    together = min(less + more, 2 - less - more)  # above 1, rows and columns explain the same
    sizes = np.bincount(ndimage.label(second)[0].ravel())[1:]
    usual = _median(sizes)
    alike = sizes[(sizes >= usual / 2) & (sizes <= usual * 2)].sum() / sizes.sum()
    present = min(1.0, share / FULL_PATTERN)
    scores = {
        "plain": 1 - present,
        "striped": present * (more - less) * (many > 1),
        "dotted": present * (1 - more) * alike * min(1.0, len(sizes) / 8),
        "checked": present * together * min(1.0, 2 * less / more) * (few > 1) * (many > 1),
    }
    return {name: max(0.0, float(score)) for name, score in scores.items()}


def _bands(second: _Mask, item: _Mask, axis: int) -> tuple[float, int]:
    """How far the lines along ``axis`` explain where the second colour is, and how many bands it forms there.

    The first is the correlation ratio eta squared, the share of its variance that lies between the lines: 1
    for stripes along the axis, about 0 for stripes across.
    """
    size = item.sum(axis)
    count, size = second.sum(axis)[size > 0], size[size > 0]
    mean = count.sum() / size.sum()
    between = (np.square(count / size - mean) * size).sum() / size.sum()
    rises = np.diff(count > mean * size, prepend=False) & (count > mean * size)
    return float(between / (mean * (1 - mean))), int(rises.sum())


def _distance(a: NDArray[Any], b: NDArray[Any]) -> Any:
    """Euclidean distance over the first axis: in CIELAB, Delta E of 1976."""
    return np.sqrt(np.square(a - b).sum(axis=0))


def _median(values: NDArray[Any]) -> Any:
    """The upper median along the last axis; on a few hundred values much faster than NumPy's."""
    middle = values.shape[-1] // 2
    return np.partition(values, middle)[..., middle]


def _box(mask: _Mask) -> tuple[slice, slice]:
    """Rows and columns of the bounding box of a mask that is not empty."""
    rows, columns = ndimage.find_objects(mask.astype(np.int8))[0]
    return rows, columns


def _framed(mask: _Mask) -> _Mask:
    """A mask cut to its bounding box, scaled so that its longer side fills a square: (SIDE, SIDE)."""
    side = max(mask.shape)
    square = np.zeros((side, side), dtype=bool)
    square[: mask.shape[0], : mask.shape[1]] = mask
    at = (2 * np.arange(SIDE) + 1) * side // (2 * SIDE)
    return square[np.ix_(at, at)]
