"""The bundled worlds never change by accident: lore-nano was pretrained on exactly these.

Hashes stand in `tests/cases/worlds.json`. Whoever changes a world or the corpus on purpose pretrains anew
and takes the new hashes from the failing test. Pictures are left out: the base does not see them.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest

from lore_lib.artifacts import project_root
from lore_lib.training.nano import Corpus
from lore_lib.vertical.definition import load_vertical
from lore_lib.vertical.kinds import NOT_STATED
from lore_lib.vertical.rules import verdict
from lore_lib.vertical.schema import Demand
from lore_lib.vertical.world import generate_tables

EXPECTED = json.loads((project_root() / "tests/cases/worlds.json").read_text(encoding="utf-8"))
VERTICALS = ("apparel_home", "beauty_care")
SIZES = {"train": 60, "dev": 8, "test": 12}


def digest(parts: Iterable[object]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(str(part).encode())
        sha.update(b"\0")
    return sha.hexdigest()


@pytest.mark.parametrize("name", VERTICALS)
def test_the_tables_are_the_same(name: str) -> None:
    tables = generate_tables(load_vertical(name), SIZES, 4, 2, 17)
    tables["items"] = tables["items"].drop(columns="picture")
    found = {
        table: digest([*frame.columns, *itertools.chain(*frame.itertuples(index=False))])
        for table, frame in tables.items()
    }
    assert found == EXPECTED["tables"][name]


@pytest.mark.parametrize("name", VERTICALS)
def test_every_verdict_is_the_same(name: str) -> None:
    vertical = load_vertical(name)

    def verdicts() -> Iterable[Any]:
        for dimension, kind in vertical.dimensions.items():
            items = [
                kind.attributes(dimension, text) for text in (*kind.found(), "something else", NOT_STATED)
            ]
            for value, item in itertools.product(kind.demands(), items):
                for negated, rules in itertools.product((False, True), (False, True)):
                    yield verdict(vertical, Demand(dimension, value, value, negated), item, rules)

    assert digest(verdicts()) == EXPECTED["verdicts"][name]


def test_the_pretraining_corpus_is_the_same() -> None:
    corpus = Corpus([load_vertical(name) for name in VERTICALS], 1_000_000, 17)
    texts = ("".join(text for text, _ in corpus.segments(i)) for i in range(0, 224_000, 1000))
    assert digest(texts) == EXPECTED["corpus"]
