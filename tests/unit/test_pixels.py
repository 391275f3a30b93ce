"""A student that reads pixels: its prompts, its eye, its training, and captions as its rivals."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lore_lib.artifacts import write_parquet
from lore_lib.config import Config, load_config
from lore_lib.errors import DataError
from lore_lib.features.build import build_prompts
from lore_lib.rair.benchmark import Benchmark
from lore_lib.rair.builder import build, candidates, own_recipe
from lore_lib.rair.pixels import (
    CAPTIONS,
    NOTHING,
    PIXELS,
    compare_pixels,
    pixel_table,
    spoil,
    spoiled_name,
    ways_to_see,
)
from lore_lib.sampling.engine import load_model, load_tokenizer
from lore_lib.training import pixels as module
from lore_lib.training.pixels import (
    PICTURE,
    PICTURE_TOKENS,
    attach_eye,
    collate,
    embed,
    encode,
    judge_pixels,
    nearest,
    nearest_words,
    pixel_prompts,
    pixels,
    teach_eye,
)
from lore_lib.vertical.definition import Vertical

Tables = dict[str, pd.DataFrame]
SHADES = {"navy": (16, 24, 88), "coral": (250, 112, 92), "ivory": (250, 248, 236)}


def picture(rgb: tuple[int, int, int], side: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), rgb).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> Config:
    sizes = {"rair.pixel_seeds": [0, 1], "rair.pixel_pairs": 6, "sampling.max_completion_tokens": 4}
    return load_config("smoke", overrides={**sizes, "model.base": str(tiny_model), "model.device": "cpu"})


# --- prompts


def test_the_mark_stands_where_the_caption_would(
    world_tables: Tables, captions: "pd.Series[Any]", tiny_model: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    items = world_tables["items"]
    first = world_tables["pairs"]["item_id"].iloc[0]
    hostile = items["title"].mask(items["item_id"] == first, f"x\npicture: \ufffc {PICTURE} dress")
    bare = items["picture"].mask(items["item_id"] == world_tables["pairs"]["item_id"].iloc[-1], b"")
    tables = world_tables | {"items": items.assign(title=hostile, picture=bare)}
    seen = pixel_prompts(tables, "nano", "mid", tokenizer)
    told = build_prompts(tables, captions, "mid", tokenizer=tokenizer)
    assert (seen["prompt"].str.count(r"<\|picture\|>") == seen["picture"].map(bool)).all()
    for by_pixels, by_words, item_id, png in zip(
        seen["prompt"], told["prompt"], seen["item_id"], seen["picture"], strict=True
    ):
        if png:
            assert by_pixels.replace(PICTURE, captions[item_id]) == by_words
    assert not seen["picture"].map(bool).all()


def test_a_picture_is_read_whatever_its_size_and_white_where_there_is_none() -> None:
    assert pixels(picture((10, 20, 30), 100)).shape == (3, 32, 32)
    assert pixels(picture((10, 20, 30)))[:, 5, 5].tolist() == [10, 20, 30]
    assert (pixels(b"") == 255).all()
    with pytest.raises(DataError, match="a picture of 4 bytes cannot be read; give PNG or JPEG"):
        pixels(b"none")


# --- the eye


def test_soft_tokens_stand_at_their_places_and_words_at_theirs(tiny_model: Path) -> None:
    tokenizer, model = load_tokenizer(str(tiny_model)), load_model(str(tiny_model), device="cpu")
    eye = attach_eye(model, 0)
    told = [
        encode(tokenizer, f"query: dress\npicture: {PICTURE}", picture(SHADES["navy"]), "yes"),
        encode(tokenizer, "query: a long red dress without a picture", b"", "no"),
        encode(tokenizer, f"query: mug\npicture: {PICTURE}", picture(SHADES["coral"])),
    ]
    assert [sum(row["seen"]) for row in told] == [PICTURE_TOKENS, 0, PICTURE_TOKENS]
    taught = [token for token in told[0]["labels"] if token >= 0]
    assert tokenizer.decode(taught) == f"yes{tokenizer.eos_token}"
    assert set(told[2]["labels"]) == {-100}
    for side in ("right", "left"):
        batch = collate(told, tokenizer.pad_token_id, side)
        assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in told]
        whole = embed(model, batch["input_ids"], batch["seen"], batch["pictures"])
        soft = eye(batch["pictures"] / 255)
        assert torch.equal(whole[0][batch["seen"][0]], soft[0])
        assert torch.equal(whole[2][batch["seen"][2]], soft[1])
        words = model.get_input_embeddings()(batch["input_ids"])
        assert torch.equal(whole[~batch["seen"]], words[~batch["seen"]])
    same = attach_eye(load_model(str(tiny_model), device="cpu"), 0).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in eye.state_dict().items())
    assert sum(weight.numel() for weight in eye.parameters()) < 30_000


def test_a_soft_token_says_the_word_in_whose_direction_it_points() -> None:
    words = np.array([[1.0, 0.2], [-0.8, 1.0], [0.1, -9.0]])
    soft = np.array([[[9.0, -1.0], [0.0, -0.1]], [[-1.0, 1.0], [-5.0, 0.5]]])
    assert nearest(soft, words).tolist() == [[0, 2], [1, 1]]


def test_the_first_lesson_names_colours_and_leaves_the_model_alone(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LESSON_EPOCHS", 6)
    tokenizer, model = load_tokenizer(str(tiny_model)), load_model(str(tiny_model), device="cpu")
    attach_eye(model, 0)
    before = {name: value.clone() for name, value in model.state_dict().items() if "eye" not in name}
    rng = np.random.default_rng(0)
    rows = [
        (picture(tuple(np.clip(np.add(rgb, rng.integers(-5, 6, 3)), 0, 255))), name)
        for name, rgb in SHADES.items()
        for _ in range(40)
    ]
    lessons = pd.DataFrame(rows, columns=["picture", "caption"])
    teach_eye(model, tokenizer, lessons, 0)
    first = {name: tokenizer.decode(tokenizer(f" {name}")["input_ids"][:1]).strip() for name in SHADES}
    read = nearest_words(model, tokenizer, [picture(rgb) for rgb in SHADES.values()])
    assert [words[0] for words in read] == list(first.values())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(DataError, match="none of 1 train items has a picture and a caption"):
        teach_eye(model, tokenizer, pd.DataFrame({"picture": [b""], "caption": ["navy"]}), 0)


def test_answers_do_not_depend_on_the_batch(tiny_model: Path) -> None:
    tokenizer, model = load_tokenizer(str(tiny_model)), load_model(str(tiny_model), device="cpu").eval()
    attach_eye(model, 0)
    line = f"picture: {PICTURE}"
    asked = pd.DataFrame(
        {
            "pair_id": ["a", "b", "c"],
            "prompt": [f"query: dress\n{line}", "query: mug", f"query: a red mug\n{line}"],
            "picture": [picture(SHADES["navy"]), b"", picture(SHADES["coral"])],
        }
    )  # fmt: skip
    together, alone = (judge_pixels(model, tokenizer, asked, 5, size) for size in (3, 1))
    pd.testing.assert_frame_equal(together, alone)
    assert together["pair_id"].tolist() == ["a", "b", "c"]
    assert set(together["label"]) == {""}, "a random model does not write a label, and that is counted"


# --- wrong captions


def test_the_share_that_was_asked_for_is_wrong_and_nothing_else() -> None:
    told = pd.Series(
        [f"{['navy', 'coral'][n % 2]}, plain" for n in range(100)] + [None, "dotted"], dtype=object
    )
    wrong: dict[float, set[int]] = {}
    for share in (0.1, 0.3):
        said = spoil(told, list(SHADES), share, np.random.default_rng(3))
        wrong[share] = {at for at in range(100) if said[at] != told[at]}
        assert len(wrong[share]) == round(100 * share)
        assert all(said[at].endswith(", plain") and said[at].split(", ")[0] in SHADES for at in wrong[share])
        assert said[100] is None
        assert said[101] == "dotted"
    assert wrong[0.1] < wrong[0.3]
    assert spoiled_name(0.3) == "captions, 30 % wrong"
    with pytest.raises(DataError, match="a wrong value needs another one; found navy"):
        spoil(told, ["navy"], 0.1, np.random.default_rng(0))


# --- the comparison


@pytest.fixture(scope="module")
def bench(vertical: Vertical, world_tables: Tables, captions: "pd.Series[Any]") -> Benchmark:
    recipe = replace(own_recipe(candidates(world_tables)), general=6, hard=4, visual=3)
    return build("own/apparel_home", world_tables, vertical, captions, recipe, "0")


def test_three_ways_learn_and_judge_the_same_pairs(
    config: Config,
    bench: Benchmark,
    world_tables: Tables,
    captions: "pd.Series[Any]",
    tiny_model: Path,
    vertical: Vertical,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "lore_lib.rair.pixels.run_parallel", lambda work, jobs, *_: [work(job) for job in jobs]
    )
    monkeypatch.setattr(module, "LESSON_EPOCHS", 1)
    colours = vertical.values("color")
    judged = ways_to_see(config, bench.tables(), captions, (0.0, 0.3), colours)
    assert list(judged) == [NOTHING, CAPTIONS, "captions, 30 % wrong", PIXELS]
    assert not judged[NOTHING]["prompt"].str.contains("picture:").any()
    train = world_tables["pairs"].query("split == 'train'").head(8)
    chain = "<think>\nneed: x\n</think>\n[L4]"
    traces = train[["pair_id"]].assign(completion=chain, kept=[True] * 7 + [False])
    given = (world_tables, captions, traces, bench, captions, vertical, tmp_path)
    answers = compare_pixels(config, tiny_model, *given)
    assert answers.groupby(["system", "seed"]).size().eq(len(bench.rows)).all()
    assert set(answers["seed"]) == {0, 1}
    assert not list(tmp_path.rglob("model")), "students are not kept"
    again = compare_pixels(config, tiny_model, *given)
    pd.testing.assert_frame_equal(answers, again)
    table = pixel_table(answers, bench, 50, np.random.default_rng(0))
    assert set(table["seeds"]) == {2}
    assert set(table["system"]) == {*judged, "captions, 10 % wrong"}


def test_the_table_counts_by_hand(bench: Benchmark) -> None:
    gold = bench.rows[["pair_id", "label"]]
    flip = {"L1": "L2", "L2": "L1", "L3": "L4", "L4": "L3"}
    right = gold.assign(system=PIXELS)
    near = gold.assign(label=gold["label"].map(flip), system=PIXELS)
    silent = gold.assign(label="", system=CAPTIONS)
    answers = pd.concat(
        [right.assign(seed=0), near.assign(seed=1), silent.assign(seed=0), silent.assign(seed=1)]
    )
    table = pixel_table(answers, bench, 50, np.random.default_rng(0)).set_index(
        ["system", "subset", "metric"]
    )
    for subset in ("all", "general", "visual"):
        assert table.loc[(PIXELS, subset, "acc@4"), ["value", "lowest", "highest", "gain"]].tolist() == [
            0.5, 0.0, 1.0, 0.5,
        ]  # fmt: skip
        assert table.loc[(PIXELS, subset, "acc@2"), "value"] == 1
        assert table.loc[(CAPTIONS, subset, "acc@2"), "value"] == 0
    assert table.loc[(PIXELS, "all", "acc@4"), "n"] == len(gold)
    with pytest.raises(DataError, match="pairs have no prediction"):
        pixel_table(answers.iloc[1:], bench, 50, np.random.default_rng(0))


def test_a_killed_training_goes_on_and_too_long_rows_are_named(
    config: Config, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LESSON_EPOCHS", 1)
    rows = pd.DataFrame(
        {"prompt": f"query: mug\npicture: {PICTURE}", "completion": "[L4]", "picture": picture((9, 9, 9))},
        index=range(8),
    )
    lessons = write_parquet(rows[["picture"]].assign(caption="navy"), tmp_path / "lessons.parquet")
    from lore_lib.training.sft import sft_job

    job = replace(
        sft_job(config, PIXELS, write_parquet(rows, tmp_path / "rows.parquet"), tmp_path / "model"),
        epochs=1,
        batch_pairs=2,
        checkpoint_steps=2,
    )
    whole, _ = module.train_pixels(job, lessons)
    last = tmp_path / "model" / "checkpoint-4"
    assert last.is_dir()
    monkeypatch.setattr(module, "teach_eye", lambda *_: pytest.fail("the eye was taught before"))
    again, _ = module.train_pixels(job, lessons)
    parts = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.allclose(one, two) for one, two in parts)
    with pytest.raises(DataError, match=r"8 rows of up to \d+ tokens; .* max_sequence_tokens=\d+: --set"):
        module.train_pixels(replace(job, max_sequence_tokens=16), lessons)
