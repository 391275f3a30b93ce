"""The benchmark of own tables: its subsets, who names the intents, and what is said to be missing."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from lore_lib.cli import commands
from lore_lib.config import load_config
from lore_lib.errors import DataError, LoreError
from lore_lib.rair.benchmark import Benchmark, load_benchmark, read_rows
from lore_lib.rair.own import build_own, has_tables, of_test_split, settled_by_caption
from lore_lib.vertical.authoring import TEMPLATE
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.picture import render_picture

TABLES = """
tables:
  items:
    file: products.csv
    columns: {item_id: sku, title: name, price: eur, cpv: {color: shade}, picture: photo}
  queries: {file: queries.csv, columns: {query_id: id, query: text, split: part}}
  pairs: {file: ratings.csv, columns: {query_id: id, item_id: sku, label: grade}}
"""
SHADES = {"navy": (16, 24, 88), "coral": (250, 112, 92)}
QUERIES = ["navy pan", "coral wok", "pan not steel", "pan for moving out?", "navy wok", "big pan"]


@pytest.fixture
def shop(root: Path, tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a vertical with tables of its own, pictures and all; nobody told intents or kinds."""
    project = tmp_path / "project"
    home = project / "data" / "verticals" / "shop"
    home.mkdir(parents=True)
    (project / "data" / "rules").symlink_to(root / "data" / "rules")
    (project / "pyproject.toml").write_text('[project]\nname = "lore-kit"\n')
    text = TEMPLATE.read_text(encoding="utf-8")
    start, end = text.index("# Tables of your own: "), text.index("# What the generated world draws")
    text = text[:start].replace("name: my_vertical", "name: shop") + text[end:] + TABLES
    (home / "vertical.yaml").write_text(text, encoding="utf-8")
    outline = load_vertical("apparel_home").world.silhouettes["tops"]  # type: ignore[union-attr]
    for shade, rgb in SHADES.items():
        (home / f"{shade}.png").write_bytes(render_picture(rgb, outline))
    kinds = list(itertools.product(("pan", "wok"), SHADES, (True, False)))
    products = [
        (f"s{n}", f"{kind} no {n}", 9 + n, shade if told else "", f"{shade}.png")
        for n, (kind, shade, told) in enumerate(kinds)
    ]
    pd.DataFrame(products, columns=["sku", "name", "eur", "shade", "photo"]).to_csv(
        home / "products.csv", index=False
    )
    parts = ["test"] * 5 + ["train"]
    asked = [(f"q{n}", text, part) for n, (text, part) in enumerate(zip(QUERIES, parts, strict=True))]
    pd.DataFrame(asked, columns=["id", "text", "part"]).to_csv(home / "queries.csv", index=False)
    rated = [
        (f"q{q}", f"s{n}", _grade(QUERIES[q], kind, shade))
        for q in range(len(QUERIES))
        for n, (kind, shade, _) in enumerate(kinds)
    ]
    pd.DataFrame(rated, columns=["id", "sku", "grade"]).to_csv(home / "ratings.csv", index=False)
    monkeypatch.setenv("LORE_ROOT", str(project))
    return home


def _grade(query: str, kind: str, shade: str) -> str:
    if kind not in query:
        return "L3"  # a pan for a wok is near
    return "L2" if any(word in query for word in SHADES) and shade not in query else "L4"


def command(*arguments: str) -> str:
    done = CliRunner().invoke(commands, ["build-benchmark", "--vertical", "shop", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


class Chat:
    """An OpenAI-compatible server that answers by the last line it is asked."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.asked: list[str] = []
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = body["messages"][-1]["content"]
                chat.asked.append(content)
                message = {"role": "assistant", "content": answer(content)}
                reply = {"choices": [{"message": message, "finish_reason": "stop"}]}
                sent = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str], str]], Chat]]:
    running: list[tuple[Chat, threading.Thread]] = []

    def start(answer: Callable[[str], str]) -> Chat:
        chat = Chat(answer)
        thread = threading.Thread(target=chat.server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((chat, thread))
        return chat

    yield start
    for chat, thread in running:
        chat.server.shutdown()
        chat.server.server_close()
        thread.join()


def named(content: str) -> str:
    query = content.splitlines()[-1]
    code = "NC" if " not " in query else "SS" if "moving" in query else "plain"
    return json.dumps({"why": "said so", "intent": code})


def test_a_model_names_the_intents_and_captions_find_the_visual_pairs(
    shop: Path, serve: Callable[[Callable[[str], str]], Chat]
) -> None:
    chat = serve(named)
    asked = ["--set", f"rair.intents_url={chat.url}", "--set", "rair.intents_model=big"]
    said = command("--intents", "openai", *asked)
    assert "intents, openai: plain 3, NC 1, SS 1" in said
    assert "captions of 'pixels' settle and text does not; 8 of 8 pictures have a caption" in said
    assert len(chat.asked) == 5, "test queries alone, each once"
    assert "big pan" not in " ".join(chat.asked)
    frozen = load_benchmark("own/shop")
    assert f"{frozen.reference}: " in said
    assert frozen.counts()["subsets"]["visual"] > 0
    visual = frozen.rows[frozen.rows.subset == "visual"]
    assert visual["cpv"].eq("{}").all(), "where the seller states the colour, text settles the pair"
    assert visual["query"].str.contains("navy|coral").all()
    assert set(frozen.rows.loc[frozen.rows.subset == "hard", "intent"]) <= {"NC", "SS"}
    assert command("--intents", "openai", *asked) == said
    assert len(chat.asked) == 5, "replies are kept"


def test_rules_find_what_the_vertical_declares(shop: Path) -> None:
    said = command("--intents", "rules")
    assert "intents, rules: plain 3, NC 1, QA 1" in said
    assert not list((shop.parents[1] / "benchmarks" / "own").glob("*.sqlite"))
    vertical = load_vertical("shop")
    bare = vertical.model_copy(update={"world": None})
    config = load_config("smoke", "shop", overrides={"rair.intents": "rules"})
    notes = build_own(config, bare, _tables(vertical), shop, "own/shop", "1").notes
    assert "intents: the vertical declares no world.negations, so rules find neither NC nor ER" in notes


def _tables(vertical: Vertical) -> dict[str, pd.DataFrame]:
    from lore_lib.config import WorldConfig
    from lore_lib.vertical.tables import load_tables

    return load_tables(vertical, WorldConfig(), 17)


def test_what_is_missing_is_said(shop: Path) -> None:
    products = pd.read_csv(shop / "products.csv", dtype=str).drop(columns="photo")
    products.to_csv(shop / "products.csv", index=False)
    text = (shop / "vertical.yaml").read_text(encoding="utf-8").replace(", picture: photo", "")
    (shop / "vertical.yaml").write_text(text, encoding="utf-8")
    said = command()
    assert "visual: none of 8 items has a picture, so there is no visual subset" in said
    assert "hard: every query has the intent plain, so there is no hard subset; map 'intent'" in said
    assert load_benchmark("own/shop").counts()["subsets"] == {"general": 40, "hard": 0, "visual": 0}


def test_annotators_are_believed_where_they_marked_kinds(shop: Path) -> None:
    vertical = load_vertical("shop")
    tables = _tables(vertical)
    marked = tables["pairs"].assign(kind=["visual", *["plain"] * (len(tables["pairs"]) - 1)])
    config = load_config("smoke", "shop")
    made, notes = build_own(config, vertical, tables | {"pairs": marked}, shop, "own/shop", "1")
    assert "visual: 1 pairs, as your annotators marked them (kind)" in notes
    assert made.counts()["subsets"] == {"general": 39, "hard": 0, "visual": 1}
    one, two = (["cooking"] * 8, ["cooking"] * 5 + ["table"] * 3)
    for industries, general in ((one, 39), (two, 35)):
        items = tables["items"].assign(industry=industries)
        parts = tables | {"pairs": marked, "items": items}
        made, notes = build_own(config, vertical, parts, shop, "own/shop", "1")
        assert made.counts()["subsets"]["general"] == general
    assert "general: 4 plain pairs are left out, so that no industry outweighs the others" in notes
    known = {name: kind for name, kind in vertical.dimensions.items() if name not in vertical.pictured}
    unseen = vertical.model_copy(update={"dimensions": known})
    notes = build_own(config, unseen, tables, shop, "own/shop", "1").notes
    assert "visual: no pair has a kind, and the vertical names no 'pictured' dimension" in notes


def test_any_systems_answers_may_be_the_reference(shop: Path, tmp_path: Path) -> None:
    pairs = of_test_split(_tables(load_vertical("shop")))["pairs"]
    path = tmp_path / "answers.csv"
    intents = ["--intents", "rules", "--reference", str(path)]
    pairs[["pair_id", "label"]].to_csv(path, index=False)
    said = command(*intents, "--out", str(tmp_path / "easy"))
    assert "hard: the reference judge fails on no long-tail pair" in said
    assert "none: 16 long-tail pairs that the reference judge gets right are in no subset" in said
    pairs[["pair_id"]].assign(label="").to_csv(path, index=False)
    command(*intents, "--out", str(tmp_path / "hard"))
    rows = read_rows(tmp_path / "hard" / "shop.jsonl")
    assert (rows["subset"] == "hard").sum() == 16
    pairs[["pair_id", "label"]].iloc[1:].to_csv(path, index=False)
    with pytest.raises(DataError, match=r"1 pairs have no prediction.*"):
        command(*intents)


def test_a_model_may_be_the_reference(shop: Path, serve: Callable[[Callable[[str], str]], Chat]) -> None:
    judge = serve(lambda content: '{"why": "", "label": "L1", "mismatch": ""}')
    said = command(
        "--intents", "rules", "--set", "rair.judge_model=big", "--set", f"rair.judge_url={judge.url}"
    )
    assert len(judge.asked) == 40
    assert "shop.jsonl" not in said
    rows = load_benchmark("own/shop").rows
    assert set(rows["reference"]) == {"L1"}
    assert (rows["subset"] == "hard").sum() == 16


def test_too_many_unread_intents_are_refused(
    shop: Path, serve: Callable[[Callable[[str], str]], Chat]
) -> None:
    chat = serve(lambda content: "It is plain." if "moving" in content else named(content))
    asked = ["--set", f"rair.intents_url={chat.url}", "--set", "rair.intents_model=big"]
    with pytest.raises(DataError, match=r"big gave no intent for 1 of 5 queries \(malformed 1\)"):
        command("--intents", "openai", *asked)
    with pytest.raises(LoreError, match=r"set rair\.intents_model"):
        command("--intents", "openai")
    with pytest.raises(LoreError, match=r"rair\.intents"):
        command("--intents", "chatgpt")


def test_a_frozen_benchmark_is_not_overwritten(shop: Path, tmp_path: Path) -> None:
    command()
    with pytest.raises(DataError, match=r"holds shop at version 1 already, with other rows; raise the vers"):
        command("--intents", "rules")
    command("--intents", "rules", "--version", "2")
    assert load_benchmark("own/shop").version == "2"
    card = shop.parents[1] / "benchmarks" / "own" / "card.json"
    card.write_text(card.read_text().replace('"shop": {', '"other": {}, "shop": {', 1))
    with pytest.raises(DataError, match="holds other as well and would lose it"):
        command("--intents", "rules", "--version", "2")


def test_own_tables_and_worlds_are_not_mixed(shop: Path, root: Path) -> None:
    (shop.parent / "apparel_home").symlink_to(root / "data" / "verticals" / "apparel_home")
    assert has_tables(load_vertical("shop"))
    assert not has_tables(load_vertical("apparel_home"))
    with pytest.raises(LoreError, match="shop has tables of its own and apparel_home has a world"):
        command("--vertical", "apparel_home")


def test_no_test_pairs_are_named(shop: Path) -> None:
    queries = pd.read_csv(shop / "queries.csv").assign(part="train")
    queries.to_csv(shop / "queries.csv", index=False)
    with pytest.raises(DataError, match="none of 48 pairs has split test: map a column 'split'"):
        command()


def test_a_caption_settles_what_text_leaves_open(shop: Path) -> None:
    vertical = load_vertical("shop")
    row = {"query_id": "q", "query": "navy pan", "item_id": "s", "title": "pan", "price": 0.0, "cpv": "{}"}
    rows = pd.DataFrame([row | {"label": "L4"}, row | {"label": "L2"}, row | {"label": "L3"}])
    assert settled_by_caption(rows, vertical, pd.Series({"s": "navy"})).tolist() == [True, False, False]
    assert settled_by_caption(rows, vertical, pd.Series({"s": "coral"})).tolist() == [False, True, False]
    assert not settled_by_caption(rows, vertical, pd.Series({"s": None}, dtype=object)).any()


def test_the_rows_make_a_benchmark_like_any_other(shop: Path) -> None:
    command("--intents", "rules")
    frozen: Benchmark = load_benchmark("own/shop")
    right = frozen.rows[["pair_id", "label"]].assign(benchmark=frozen.reference)
    judged = frozen.judged(right)
    assert (judged["gold"] == judged["predicted"]).all()
    assert frozen.rows["picture"].map(len).min() > 0
