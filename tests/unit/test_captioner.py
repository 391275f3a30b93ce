"""The pixel captioner reads back what the world draws, abstains on blanks and names broken bytes."""

import contextlib
import io
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lore_lib.errors import DataError
from lore_lib.features.build import caption_accuracy, caption_items
from lore_lib.features.captioner import LONGEST, PixelCaptioner
from lore_lib.vertical.definition import Vertical, load_vertical, vertical_names
from lore_lib.vertical.kinds import PATTERNS
from lore_lib.vertical.picture import STRUCTURES, render_picture
from lore_lib.vertical.world import seen_on_picture

APPAREL = load_vertical("apparel_home")
CAPTIONER = PixelCaptioner(APPAREL)
TOP = [(9, 5), (23, 5), (29, 13), (24, 16), (23, 28), (9, 28), (8, 16), (3, 13)]
NAVY, CRIMSON = (16, 24, 88), (196, 16, 46)
PLAIN = render_picture(NAVY, TOP)


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def swatch(side: int = 24) -> Image.Image:
    """A crimson square on white."""
    image = Image.new("RGB", (40, 40), "white")
    image.paste(CRIMSON, (8, 8, 8 + side, 8 + side))
    return image


@pytest.mark.parametrize("name", vertical_names())
def test_every_shade_pattern_and_group_is_read_back(name: str) -> None:
    vertical = load_vertical(name)
    assert vertical.world
    captioner, marks = PixelCaptioner(vertical), itertools.cycle(STRUCTURES)
    for group, outline in vertical.world.silhouettes.items():
        for (shade, rgb), pattern in itertools.product(vertical.shades.items(), PATTERNS):
            look = captioner.look(render_picture(rgb, outline, pattern, next(marks)))
            assert (look.color, look.pattern, look.group) == (shade, pattern, group)


def test_the_pictures_of_the_world_show_what_is_true(
    vertical: Vertical, world_tables: dict[str, pd.DataFrame], captions: "pd.Series[str]"
) -> None:
    items = world_tables["items"].set_index("item_id").truth
    assert captions.to_dict() == {k: seen_on_picture(vertical, json.loads(v)) for k, v in items.items()}


@given(
    st.sampled_from(list(APPAREL.shades.values())),
    st.sampled_from(list(APPAREL.world.silhouettes.values()) if APPAREL.world else []),
    st.sampled_from(PATTERNS),
)
@settings(max_examples=30)
def test_mirrored_enlarged_turned_or_on_a_grey_wall_it_is_the_same_item(
    rgb: tuple[int, int, int], outline: list[tuple[int, int]], pattern: str
) -> None:
    picture = opened(render_picture(rgb, outline, pattern))
    look = CAPTIONER.look(encoded(picture))
    pixels = np.asarray(picture)
    grey = np.where((pixels == 255).all(axis=-1, keepdims=True), np.uint8(235), pixels)
    for changed in (
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        picture.resize((96, 96), Image.Resampling.NEAREST),
        Image.fromarray(grey),
    ):
        same = CAPTIONER.look(encoded(changed))
        assert (same.color, same.pattern, same.group) == (look.color, look.pattern, look.group)
    turned = CAPTIONER.look(encoded(picture.transpose(Image.Transpose.ROTATE_90)))
    assert (turned.color, turned.pattern) == (look.color, look.pattern)


def test_shares_and_confidences_are_shares() -> None:
    look = CAPTIONER.look(render_picture(NAVY, TOP, "striped"))
    assert sum(look.shares.values()) == pytest.approx(1)
    assert list(look.shares.values()) == sorted(look.shares.values(), reverse=True)
    assert 0.6 < look.shares["navy"] < 0.8
    assert all(0.5 <= value <= 1 for value in look.confidence.values())


def test_what_is_neither_pattern_is_not_named_and_the_caption_is_whole_or_absent() -> None:
    picture = opened(render_picture(CRIMSON, TOP)).resize((128, 128), Image.Resampling.NEAREST)
    picture.paste(NAVY, (44, 40, 84, 70))  # a large print
    look = CAPTIONER.look(encoded(picture))
    assert (look.color, look.pattern) == ("crimson", None)
    assert CAPTIONER(encoded(picture)) is None
    assert PixelCaptioner(load_vertical("beauty_care"))(encoded(picture)) == "ruby"  # asks for no pattern


def test_a_colour_far_from_every_shade_is_not_named() -> None:
    cyan = CAPTIONER.look(render_picture((0, 255, 255), TOP))
    assert (cyan.color, cyan.pattern, cyan.group) == (None, "plain", "tops")


def test_a_vertical_without_shades_or_world_has_no_captions() -> None:
    bare = Vertical(
        name="bare",
        title="Bare",
        dimensions={"category": {"kind": "taxonomy", "groups": {"tools": ["saw", "axe"]}}},  # type: ignore[dict-item]
    )
    captioner = PixelCaptioner(bare)
    assert captioner(PLAIN) is None
    assert captioner.look(PLAIN).pattern == "plain"
    assert captioner.look(PLAIN).group is None


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "CMYK"])
def test_every_mode_of_pixels_is_read(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert CAPTIONER(encoded(swatch().convert(mode), kind)) == "crimson, plain"


def test_grey_and_sixteen_bit_pictures_are_read() -> None:
    square = np.full((40, 40), 255, dtype=np.uint8)
    square[8:32, 8:32] = 128
    for image in (Image.fromarray(square), Image.fromarray(square).convert("LA")):
        assert CAPTIONER(encoded(image)) == "ash, plain"


def test_what_is_transparent_is_white() -> None:
    cut_out = swatch().convert("RGBA")
    pixels = np.array(cut_out)
    pixels[(pixels[..., :3] == 255).all(axis=-1)] = (0, 0, 0, 0)
    assert CAPTIONER(encoded(Image.fromarray(pixels))) == "crimson, plain"


@pytest.mark.parametrize("color", ["white", "black", CRIMSON])
def test_a_picture_of_one_colour_shows_nothing(color: str | tuple[int, int, int]) -> None:
    look = CAPTIONER.look(encoded(Image.new("RGB", (32, 32), color)))
    assert (look.shares, look.color, look.pattern, look.group) == ({}, None, None, None)
    assert CAPTIONER(encoded(Image.new("RGB", (1, 1), color))) is None


def test_a_speck_is_no_item() -> None:
    assert CAPTIONER.look(encoded(swatch(5))).color is None  # 25 of 1600 pixels: under 2 %
    assert CAPTIONER.look(encoded(swatch(6))).color == "crimson"


def test_an_uneven_background_leaves_nothing_to_see() -> None:
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not CAPTIONER.look(encoded(Image.fromarray(noise))).shares


def test_a_large_picture_is_looked_at_in_small() -> None:
    large = opened(render_picture(NAVY, TOP, "checked")).resize((40 * LONGEST, 40 * LONGEST))
    assert CAPTIONER(encoded(large, "JPEG")) == "navy, checked"


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", PLAIN[:60], PLAIN[:-30], b"\x89PNG\r\n\x1a\n", b"<svg/>"],
    ids=["empty", "text", "cut early", "cut late", "head alone", "svg"],
)
def test_broken_bytes_are_named_with_their_item(data: bytes) -> None:
    with pytest.raises(DataError, match=rf"item 'i7': field 'picture' holds {len(data)} bytes"):
        CAPTIONER(data, "i7")


@given(st.binary(max_size=200), st.sampled_from([b"", PLAIN[:33], b"\xff\xd8\xff\xe0"]))
def test_random_bytes_are_a_data_error(data: bytes, start: bytes) -> None:
    with pytest.raises(DataError, match="no readable image"):
        CAPTIONER(start + data)


@given(st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_give_a_caption_or_a_data_error_and_nothing_else(damage: list[tuple[int, int]]) -> None:
    data = bytearray(PLAIN)
    for position, value in damage:
        data[position] = value
    with contextlib.suppress(DataError):
        caption = CAPTIONER(bytes(data))
        assert caption is None or caption.split(", ")[0] in APPAREL.shades


def test_a_picture_that_would_unpack_to_gigabytes_is_refused() -> None:
    width = (60_000).to_bytes(4, "big")
    with pytest.raises(DataError, match="no readable image"):
        CAPTIONER(PLAIN[:16] + width + width + PLAIN[24:])


def test_items_without_a_picture_are_passed_over() -> None:
    items = pd.DataFrame({"item_id": ["a", "b"], "picture": [PLAIN, b""]})
    assert caption_items(items, CAPTIONER).to_dict() == {"a": "navy, plain", "b": None}


def test_captions_and_sellers_are_scored_against_the_truth(vertical: Vertical) -> None:
    truths = [{"color": "navy", "style_detail": "plain"}, {"color": "coral", "style_detail": "dotted"}]
    items = pd.DataFrame(
        {"truth": map(json.dumps, truths), "cpv": ['{"color": "navy"}', '{"style_detail": "dotted"}']}
    )
    table = caption_accuracy(items, pd.Series(["navy, striped", None]), vertical, "pixels")
    assert [tuple(row) for row in table.to_numpy()] == [
        ("color", "pixels", 0.5, 2),
        ("color", "seller's text", 0.5, 2),
        ("style_detail", "pixels", 0.0, 2),
        ("style_detail", "seller's text", 0.5, 2),
    ]
    unpictured = vertical.model_copy(update={"dimensions": {}})
    assert caption_accuracy(items, pd.Series([None, None]), unpictured, "pixels").empty
