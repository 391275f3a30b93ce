"""Pictures hold what they are asked to show: colour, pattern, silhouette and the mark of a category."""

import io
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from lore_lib.vertical.definition import Vertical, load_vertical, vertical_names
from lore_lib.vertical.kinds import PATTERNS, RGB
from lore_lib.vertical.picture import SIDE, STRUCTURES, render_picture, silhouette

NAVY, LEMON = (16, 24, 88), (250, 238, 70)
SHEET = [(3, 9), (29, 9), (29, 27), (3, 27)]


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.fixture(params=vertical_names())
def bundled(request: pytest.FixtureRequest) -> Vertical:
    return load_vertical(request.param)


def test_the_item_fills_its_silhouette_and_nothing_else() -> None:
    for pattern, structure in itertools.product(PATTERNS, STRUCTURES):
        drawn = pixels(render_picture(NAVY, SHEET, pattern, structure))
        assert drawn.shape == (SIDE, SIDE, 3)
        assert ((drawn < 255).any(axis=-1) == silhouette(SHEET)).all()


def test_the_main_colour_keeps_most_of_every_item(bundled: Vertical) -> None:
    assert bundled.world
    for outline, pattern in itertools.product(bundled.world.silhouettes.values(), PATTERNS):
        body = pixels(render_picture(NAVY, outline, pattern))[silhouette(outline)]
        share = (body == NAVY).all(axis=-1).mean()
        assert share == 1 if pattern == "plain" else 0.6 < share < 0.9


def test_no_two_patterns_or_marks_look_the_same(bundled: Vertical) -> None:
    assert bundled.world
    for outline in bundled.world.silhouettes.values():
        drawn = [
            pixels(render_picture(NAVY, outline, *kind)) for kind in itertools.product(PATTERNS, STRUCTURES)
        ]
        for one, other in itertools.combinations(drawn, 2):
            assert (one != other).any(axis=-1).sum() >= 4


@pytest.mark.parametrize(("rgb", "lighter"), [(NAVY, True), (LEMON, False)])
def test_a_dark_item_has_a_lighter_pattern_and_a_light_item_a_darker_one(rgb: RGB, lighter: bool) -> None:
    body = pixels(render_picture(rgb, SHEET, "striped"))[silhouette(SHEET)].astype(int)
    second = body[(body != rgb).any(axis=-1)].mean(axis=0)
    assert (second.sum() > sum(rgb)) == lighter


def test_the_same_item_gives_the_same_bytes_and_few_of_them() -> None:
    first = render_picture(NAVY, SHEET, "checked", "zip")
    render_picture.__globals__["_render"].cache_clear()
    assert render_picture(NAVY, list(SHEET), "checked", "zip") == first
    assert len(first) < 500


def test_the_categories_of_a_group_have_marks_of_their_own(
    vertical: Vertical, world_tables: dict[str, pd.DataFrame]
) -> None:
    marks: dict[tuple[str, ...], set[bytes]] = {}
    for row in world_tables["items"].itertuples():
        truth = json.loads(str(row.truth))
        shown = (
            vertical.group_of[truth["category"]],
            truth["color"],
            truth["style_detail"],
            truth["category"],
        )
        marks.setdefault(shown, set()).add(bytes(row.picture))  # type: ignore[arg-type]
    assert all(len(pictures) == 1 for pictures in marks.values())
    drawn = [next(iter(pictures)) for pictures in marks.values()]
    assert len(set(drawn)) == len(drawn)
