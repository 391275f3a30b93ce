"""The pixel captioner on photographs: it was not made for them, so it must abstain or stay plausible."""

from pathlib import Path

import pytest

from lore_lib.features.captioner import Look, PixelCaptioner
from lore_lib.vertical.definition import Vertical

pytestmark = pytest.mark.real_data

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "clothing_photos"


@pytest.fixture(scope="module")
def looks(vertical: Vertical) -> dict[str, Look]:
    captioner = PixelCaptioner(vertical)
    return {path.stem: captioner.look(path.read_bytes()) for path in sorted(FOLDER.glob("*/*.jpg"))}


def test_every_photo_is_read_and_most_show_an_item(looks: dict[str, Look]) -> None:
    assert len(looks) == 372
    assert sum(bool(look.shares) for look in looks.values()) > 0.85 * len(looks)


def test_silhouettes_of_photos_are_not_named(looks: dict[str, Look]) -> None:
    """Drawn outlines are no photographs' outlines; the captioner knows that it does not know."""
    assert sum(look.group is not None for look in looks.values()) < 0.02 * len(looks)


def test_patterns_are_named_rarely(looks: dict[str, Look]) -> None:
    """Few of the garments are striped, dotted or checked; folds and prints must not count as patterns."""
    patterned = [look.pattern for look in looks.values() if look.pattern not in ("plain", None)]
    assert len(patterned) < 0.06 * len(looks)
