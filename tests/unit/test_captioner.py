"""The pixel captioner reads back what the world draws, abstains on blanks and names broken bytes."""

import contextlib
import io
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lore_lib.errors import DataError
from lore_lib.features.build import caption_items
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.picture import render_picture

SHADES = load_vertical("apparel_home").shades
CAPTIONER = PixelCaptioner(load_vertical("apparel_home"))
NAVY = render_picture((16, 24, 88), [(9, 5), (23, 5), (23, 28), (9, 28)])


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_every_shade_on_every_silhouette_is_read_back(vertical: Vertical) -> None:
    assert vertical.world
    for group, outline in vertical.world.silhouettes.items():
        for shade, rgb in vertical.shades.items():
            assert CAPTIONER(render_picture(rgb, outline)) == shade, (group, shade)


def test_the_pictures_of_the_world_show_the_true_colour(
    world_tables: dict[str, pd.DataFrame], captions: "pd.Series[str]"
) -> None:
    truth = {row.item_id: json.loads(str(row.truth))["color"] for row in world_tables["items"].itertuples()}
    assert captions.to_dict() == truth


def test_a_jpeg_in_palette_or_grey_or_with_an_alpha_channel_is_read_too() -> None:
    crimson = Image.new("RGB", (40, 40), (196, 16, 46))
    assert CAPTIONER(encoded(crimson, "JPEG")) == "crimson"
    assert CAPTIONER(encoded(crimson.convert("P"))) == "crimson"
    assert CAPTIONER(encoded(crimson.convert("RGBA"))) == "crimson"
    assert CAPTIONER(encoded(Image.new("L", (40, 40), 128))) == "ash"


def test_a_blank_picture_gives_no_caption() -> None:
    assert CAPTIONER(encoded(Image.new("RGB", (32, 32), (255, 255, 255)))) is None
    speck = Image.new("RGB", (32, 32), (255, 255, 255))
    for x in range(20):  # 20 of 1024 pixels, just under the minimum share of 2 %
        speck.putpixel((x, 0), (196, 16, 46))
    assert CAPTIONER(encoded(speck)) is None
    speck.putpixel((20, 0), (196, 16, 46))
    assert CAPTIONER(encoded(speck)) == "crimson"


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", NAVY[:60], NAVY[:-30], b"\x89PNG\r\n\x1a\n", b"<svg/>"],
    ids=["empty", "text", "cut early", "cut late", "head alone", "svg"],
)
def test_broken_bytes_are_named_with_their_item(data: bytes) -> None:
    with pytest.raises(DataError, match=rf"item 'i7': field 'picture' holds {len(data)} bytes"):
        CAPTIONER(data, "i7")


@given(st.lists(st.tuples(st.integers(0, len(NAVY) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_give_a_caption_or_a_data_error_and_nothing_else(damage: list[tuple[int, int]]) -> None:
    data = bytearray(NAVY)
    for position, value in damage:
        data[position] = value
    with contextlib.suppress(DataError):
        assert CAPTIONER(bytes(data)) in {None, *SHADES}


def test_a_picture_that_would_unpack_to_gigabytes_is_refused() -> None:
    width = (60_000).to_bytes(4, "big")
    with pytest.raises(DataError, match="no readable image"):
        CAPTIONER(NAVY[:16] + width + width + NAVY[24:])


def test_items_without_a_picture_are_passed_over() -> None:
    items = pd.DataFrame({"item_id": ["a", "b"], "picture": [NAVY, b""]})
    assert caption_items(items, CAPTIONER).to_dict() == {"a": "navy", "b": None}
