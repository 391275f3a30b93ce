"""The knowledge index: clicks first, then the catalogue, one voice per shop, and nothing that leaks."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lore_lib.cot.selling_points as selling_points
from lore_lib.config import CotConfig
from lore_lib.cot.knowledge import Ask, KnowledgeIndex, explanation_recall, explanations, held_out_items
from lore_lib.cot.selling_points import LONGEST_TEXT
from lore_lib.errors import ArtifactError, ConfigError, DataError
from lore_lib.vertical.definition import Vertical

Click = tuple[str, str, int]
Tables = dict[str, pd.DataFrame]

POINTS = {
    "a": "matcha (mint)",
    "b": "klein (cobalt); frock (dress)",
    "c": "",
    "d": "matcha (emerald)",
    "e": "matcha (mint); latte (camel)",
}
CLICKS = [("q1", "a", 9), ("q1", "c", 8), ("q1", "d", 3), ("q2", "b", 5)]


def items_of(points: dict[str, str], shops: dict[str, str] | None = None) -> pd.DataFrame:
    items = pd.DataFrame({"item_id": list(points), "selling_points": list(points.values())})
    return items if shops is None else items.assign(shop=items.item_id.map(shops).fillna(""))


def clicks_of(clicks: list[Click]) -> pd.DataFrame:
    return pd.DataFrame(clicks, columns=["query_id", "item_id", "clicks"])


def index(
    top_clicked: int = 5,
    selling_points: int = 3,
    clicks: list[Click] = CLICKS,
    points: dict[str, str] = POINTS,
    shops: dict[str, str] | None = None,
    **more: Any,
) -> KnowledgeIndex:
    return KnowledgeIndex(items_of(points, shops), clicks_of(clicks), top_clicked, selling_points, **more)


# What is read


def test_the_most_clicked_come_first_and_then_the_catalogue() -> None:
    assert index().evidence("q1", ["matcha"]) == [POINTS["a"], POINTS["d"], POINTS["e"]]
    assert index(top_clicked=1, selling_points=0).evidence("q1", ["matcha"]) == [POINTS["a"]]


def test_clicks_on_two_shops_that_agree_are_enough() -> None:
    agreed = [("q1", "a", 2), ("q1", "e", 1)]
    assert index(clicks=agreed).evidence("q1", ["matcha"]) == [POINTS["a"], POINTS["e"]]
    one_shop = dict.fromkeys(POINTS, "same")
    assert POINTS["d"] not in index(clicks=agreed).evidence("q1", ["matcha"])
    assert len(index(clicks=agreed, shops=one_shop).evidence("q1", ["matcha"])) == 2  # one clicked, one found


def test_only_words_that_the_clicks_leave_open_are_searched() -> None:
    agreed = [("q1", "a", 2), ("q1", "e", 1)]
    assert index(clicks=agreed).evidence("q1", ["matcha", "klein"]) == [POINTS[i] for i in "aeb"]


def test_the_catalogue_answers_where_the_clicks_are_silent() -> None:
    assert index().explain("q1", ["latte"]) == {"latte": "camel"}
    assert index(selling_points=0).explain("q1", ["latte"]) == {}
    assert index().explain("unclicked", ["klein"]) == {"klein": "cobalt"}


def test_rows_of_the_log_add_up_and_those_without_a_click_or_an_item_are_nothing() -> None:
    log = [("q", "a", 3), ("q", "d", 2), ("q", "d", 2), ("q", "b", 0), ("q", "gone", 9)]
    assert index(selling_points=0, clicks=log).evidence("q", ["x"]) == [POINTS["d"], POINTS["a"]]


def test_equal_clicks_are_ordered_by_item_and_so_is_every_repetition() -> None:
    ties = [("q1", item, 4) for item in ("d", "a", "e")]
    assert index(clicks=ties).evidence("q1", ["matcha"]) == index(clicks=ties[::-1]).evidence(
        "q1", ["matcha"]
    )
    backwards = dict(reversed(POINTS.items()))
    assert index(clicks=ties, points=backwards).evidence("q1", ["x"]) == [POINTS[i] for i in "ade"]


@pytest.mark.parametrize("words", [[], ["unheard"], ["(", ")"], ["", "\u200b"]], ids=repr)
def test_words_without_evidence_are_left_out(words: list[str]) -> None:
    assert index().explain("q1", words) == {}


def test_the_case_of_a_word_does_not_matter() -> None:
    assert index(points={"a": "Matcha (mint)"}).explain("q", ["matcha"]) == {"matcha": "mint"}
    assert index().explain("q1", ["MATCHA"]) == {"MATCHA": "mint"}


@pytest.mark.parametrize("points", [{"a": ""}, {"a": "()"}, {"a": "  "}, {}], ids=repr)
def test_a_vertical_without_clicks_or_selling_points_explains_nothing(
    points: dict[str, str], tmp_path: Path
) -> None:
    made = index(points=points, clicks=[])
    made.save(tmp_path)
    for one in (made, KnowledgeIndex.load(tmp_path), KnowledgeIndex.load(tmp_path, mmap=False)):
        assert one.explain("q", ["matcha"]) == {}


# Whom to believe


def test_the_meaning_most_shops_give_wins() -> None:
    ties = [("q1", "a", 1), ("q1", "d", 9), ("q1", "e", 1)]
    assert index(clicks=ties).explain("q1", ["matcha"]) == {"matcha": "mint"}


@given(
    lies=st.integers(1, 60),
    same=st.booleans(),
    clicked=st.integers(0, 60),
    honest=st.integers(3, 6),
    words=st.sampled_from(["", "; soft", "; a long and honest text"]),
)
@settings(max_examples=15)
def test_one_shop_is_one_voice_however_often_it_lies(
    lies: int, same: bool, clicked: int, honest: int, words: str
) -> None:
    points = {f"lie{n}": f"matcha (navy){'' if same else f'; {n}'}" for n in range(lies)}
    shops = dict.fromkeys(points, "liar") | {f"true{n}": f"shop {n}" for n in range(honest)}
    points |= {f"true{n}": f"matcha (mint){words}" for n in range(honest)}
    clicks = [("q", f"lie{n}", 99) for n in range(min(clicked, lies))]
    made = index(points=points, shops=shops, clicks=clicks)
    assert made.explain("q", ["matcha"]) == {"matcha": "mint"}
    assert sum("navy" in text for text in made.evidence("q", ["matcha"])) <= 2  # one clicked, one found


def test_a_shop_that_contradicts_itself_votes_once() -> None:
    points = {"a": "matcha (navy)", "b": "matcha (navy); matcha (mint)", "c": "matcha (mint)"}
    shops = {"a": "x", "b": "x", "c": "y"}
    clicks = [("q", "c", 9), ("q", "a", 1), ("q", "b", 1)]
    assert index(points=points, shops=shops, clicks=clicks).explain("q", ["matcha"]) == {"matcha": "mint"}


def test_items_that_state_no_shop_are_voices_of_their_own_and_no_shop_can_take_one() -> None:
    points = dict.fromkeys(("a", "b", "c", "d"), "matcha (mint)")
    made = index(points=points, shops={"c": "item a", "d": "a"}, clicks=[])
    assert len(made.reading(0, 9).evidence("q", ["matcha"])) == 4


def test_a_text_is_cut_and_hostile_brackets_explain_nothing() -> None:
    assert index(points={"a": f"{'x' * LONGEST_TEXT}; matcha (mint)"}).explain("q", ["matcha"]) == {}
    for text in (
        "(" * 10**6,
        "a (" * 10**5,
        "a b " * 10**5 + "(",
        "matcha(mint)",
        "matcha ()",
        " (mint)",
        "a (b;c)",
    ):
        assert explanations(text) == ()
    assert explanations("soft (x matcha (mint) ;b (c)(d)") == (("x matcha", "mint"), ("b", "c"))


# What would leak

WORDS = ("matcha", "klein", "frock")
MEANINGS = ("mint", "navy", "dress")
texts = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(MEANINGS)), max_size=2).map(
    lambda pairs: "; ".join(f"{word} ({meaning})" for word, meaning in pairs)
)
ids = [f"i{n}" for n in range(8)]
catalogues = st.dictionaries(st.sampled_from(ids), texts, min_size=1)
logs = st.lists(st.tuples(st.sampled_from(["q", "r"]), st.sampled_from(ids), st.integers(0, 3)), max_size=12)
shop_names = st.fixed_dictionaries({i: st.sampled_from(["", "s", "t", "u"]) for i in ids})
asked = [
    Ask(query, words, item) for query in "qrz" for words in (WORDS, WORDS[:1]) for item in ("", *ids[:3])
]


@given(points=catalogues, clicks=logs, shops=shop_names, held_out=st.sets(st.sampled_from(ids)))
@settings(max_examples=25)
def test_held_out_items_might_as_well_not_exist(
    points: dict[str, str], clicks: list[Click], shops: dict[str, str], held_out: set[str]
) -> None:
    made = index(points=points, clicks=clicks, shops=shops, held_out=held_out)
    without = index(
        points={item: text for item, text in points.items() if item not in held_out},
        clicks=[click for click in clicks if click[1] not in held_out],
        shops=shops,
    )
    assert made.evidence_many(asked) == without.evidence_many(asked)
    assert made.explain_many(asked) == without.explain_many(asked)


@given(
    points=catalogues,
    clicks=logs,
    shops=shop_names,
    more=st.integers(1, 9),
    query=st.sampled_from(["q", "r"]),
)
@settings(max_examples=25)
def test_clicks_on_the_judged_item_change_nothing_for_its_pair(
    points: dict[str, str], clicks: list[Click], shops: dict[str, str], more: int, query: str
) -> None:
    judged = ids[0]
    loved = [*clicks, (query, judged, more)]
    ignored = [click for click in clicks if click[1] != judged]
    pair = [Ask(query, WORDS, judged)]
    one, two = (index(points=points, clicks=log, shops=shops) for log in (loved, ignored))
    assert one.evidence_many(pair) == two.evidence_many(pair)


def test_the_judged_item_never_explains_its_own_pair() -> None:
    assert index().explain("q2", ["klein"]) == {"klein": "cobalt"}
    assert index().explain("q2", ["klein"], exclude_item="b") == {}
    assert index().explain("q1", ["latte"], exclude_item="e") == {}
    assert POINTS["b"] not in index().evidence("q2", ["klein", "frock"], exclude_item="b")


def test_nor_does_the_same_text_of_its_shop_but_that_of_another_shop_does() -> None:
    points = dict.fromkeys(("a", "b"), "matcha (mint)")
    twin = index(points=points, shops=dict.fromkeys(points, "s"))
    assert twin.explain("q1", ["matcha"], exclude_item="a") == {}
    other = index(points=points, shops={"a": "s", "b": "t"})
    assert other.explain("q1", ["matcha"], exclude_item="a") == {"matcha": "mint"}


def test_excluding_an_item_does_not_cost_a_place_among_the_evidence() -> None:
    assert index(top_clicked=1).evidence("q1", ["matcha"], exclude_item="a")[0] == POINTS["d"]
    assert index(2, 0).explain("q1", ["matcha"], exclude_item="a") == {"matcha": "emerald"}


def test_the_index_of_a_run_knows_no_item_of_a_dev_or_test_pair(world_tables: Tables) -> None:
    pairs = world_tables["pairs"]
    items, clicks = world_tables["items"].copy(), world_tables["clicks"]
    held_out = held_out_items(pairs)
    assert held_out == set(pairs.query("split in ['dev', 'test']").item_id)
    secret = items.item_id.isin(held_out)
    items.loc[secret, "selling_points"] = "secret (mint)"
    made = KnowledgeIndex.of({"items": items, "clicks": clicks, "pairs": pairs}, CotConfig())
    for query_id in world_tables["queries"].query_id:
        assert not any("secret" in text for text in made.evidence(query_id, ["secret"]))
    leaky = KnowledgeIndex(items, clicks, 5, 3)
    assert leaky.explain("train-q00000", ["secret"]) == {"secret": "mint"}  # so the test can fail


# Many at once, streams, files


@given(points=catalogues, clicks=logs, shops=shop_names)
@settings(max_examples=10)
def test_many_pairs_at_once_are_the_pairs_one_by_one(
    points: dict[str, str], clicks: list[Click], shops: dict[str, str]
) -> None:
    made = index(points=points, clicks=clicks, shops=shops, top_clicked=2, selling_points=2)
    assert made.evidence_many(asked) == [made.evidence(*ask) for ask in asked]
    assert made.explain_many(asked) == [made.explain(*ask) for ask in asked]


def test_a_stream_of_batches_is_the_table(world_tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(name: str) -> Iterator[pa.RecordBatch]:
        yield from pa.Table.from_pandas(world_tables[name]).to_batches(max_chunksize=17)

    whole = KnowledgeIndex(world_tables["items"], world_tables["clicks"], 5, 3)
    monkeypatch.setattr(selling_points, "_BLOCK", 40)
    parts = KnowledgeIndex(stream("items"), stream("clicks"), 5, 3)
    asks = [Ask(query_id, ["matcha", "frock"]) for query_id in world_tables["queries"].query_id]
    assert parts.evidence_many(asks) == whole.evidence_many(asks)
    assert sum(map(len, whole.evidence_many(asks))) > len(asks)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_loaded_index_is_the_saved_one(world_tables: Tables, tmp_path: Path, mmap: bool) -> None:
    made = KnowledgeIndex(world_tables["items"], world_tables["clicks"], 4, 2)
    made.save(tmp_path / "new" / "knowledge")
    loaded = KnowledgeIndex.load(tmp_path / "new" / "knowledge", mmap)
    asks = [Ask(query_id, ["matcha", "frock"]) for query_id in world_tables["queries"].query_id]
    assert loaded.evidence_many(asks) == made.evidence_many(asks)
    loaded.save(tmp_path / "new" / "knowledge")  # over the files it reads
    assert loaded.evidence_many(asks) == made.evidence_many(asks)
    assert not [path for path in (tmp_path / "new" / "knowledge").iterdir() if path.name.startswith(".")]


def test_the_same_tables_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        index().save(tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_an_index_that_is_not_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index().save(tmp_path / "ix")
    for name in [path.name for path in (tmp_path / "ix").iterdir()]:
        broken = Path(shutil.copytree(tmp_path / "ix", tmp_path / name))
        (broken / name).write_bytes((broken / name).read_bytes()[:-5])
        with pytest.raises(ArtifactError, match="build"):
            KnowledgeIndex.load(broken)
        (broken / name).unlink()
        with pytest.raises(ArtifactError, match="build"):
            KnowledgeIndex.load(broken)
    record = tmp_path / "ix" / "index.json"
    record.write_text(record.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    with pytest.raises(ArtifactError, match="schema_version 0, not 1"):
        KnowledgeIndex.load(tmp_path / "ix")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    index().save(tmp_path / "ix")
    monkeypatch.setattr("lore_lib.cot.retrieval.Bm25.save", killed)
    with pytest.raises(KeyboardInterrupt):
        index().save(tmp_path / "ix")
    with pytest.raises(ArtifactError, match="no whole knowledge index"):
        KnowledgeIndex.load(tmp_path / "ix")


@pytest.mark.parametrize(
    ("items", "clicks", "said"),
    [
        (items_of(POINTS).drop(columns="selling_points"), clicks_of([]), "items: no column 'selling_points'"),
        (items_of(POINTS), clicks_of([]).rename(columns={"clicks": "click"}), "did you mean 'click'"),
        (pd.concat([items_of(POINTS)] * 2), clicks_of([]), "4 repeated item_id, first 'a'"),
        (items_of(POINTS), clicks_of(CLICKS).assign(clicks="many"), "'clicks' is not int64 throughout"),
    ],
)
def test_tables_that_cannot_be_read_are_named(items: pd.DataFrame, clicks: pd.DataFrame, said: str) -> None:
    with pytest.raises(DataError, match=said):
        KnowledgeIndex(items, clicks, 5, 3)


@pytest.mark.parametrize("retrieval", ["dense", "hybrid"])
def test_search_by_meaning_needs_an_encoder(retrieval: Any) -> None:
    with pytest.raises(ConfigError, match="needs a sentence encoder"):
        index(retrieval=retrieval)
    with pytest.raises(ConfigError, match="needs a sentence encoder"):
        index().reading(1, 1, retrieval)


# Recall


def test_recall_by_hand() -> None:
    points = {"a": "matcha (mint)", "b": "matcha (navy)", "c": "matcha (navy); latte (camel)"}
    made = index(points=points, clicks=[("q1", "a", 9)])
    rows = pd.DataFrame(
        {
            "query_id": ["q1", "q2", "q1", "q3"],
            "query": ["matcha dress", "latte matcha dress", "matcha", "plain dress"],
            "item_id": ["", "", "a", ""],
            "intent": ["DJ", "DJ", "SS", "plain"],
        }
    )
    result = explanation_recall(made, rows, {"matcha": "mint", "latte": "camel"}, depths=(1, 3))
    held = result.set_index(["query_id", "item_id", "source", "k"]).held.to_dict()
    right = result.set_index(["query_id", "item_id", "source", "k"]).right.to_dict()
    assert {key[0] for key in held} == {"q1", "q2"}  # q3 needs nothing
    assert held["q1", "", "clicks", 1]
    assert right["q1", "", "clicks", 1]
    assert held["q1", "", "both", 3]
    assert not right["q1", "", "both", 3]  # two of three say navy
    assert not held["q1", "a", "both", 3]  # the one truthful item is the judged one
    assert not held["q2", "", "clicks", 3]
    assert not held["q2", "", "catalogue", 1]  # both words, or none
    assert held["q2", "", "catalogue", 3]
    assert set(result.intent) == {"DJ", "SS"}


def test_in_a_world_nearly_every_explanation_is_found(world_tables: Tables, vertical: Vertical) -> None:
    lexicon = {slang: next(iter(entry.means.values())) for slang, entry in vertical.lexicon.items()}
    pairs = world_tables["pairs"].merge(world_tables["queries"][["query_id", "query", "intent"]])
    made = KnowledgeIndex.of(world_tables, CotConfig())
    rows = explanation_recall(made, pairs[pairs.split == "train"], lexicon, depths=(1, 5))
    recall = rows.groupby(["source", "k"]).held.mean()
    assert recall["both", 5] > 0.95
    assert recall["both", 5] > recall["clicks", 5] + 0.05
    assert recall["clicks", 5] > recall["clicks", 1]
