"""lore-nano: a tokenizer that loses no text, a corpus without leaks, a pretraining that resumes exactly."""

import re
import unicodedata
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from lore_lib.artifacts import read_jsonl
from lore_lib.cot.teacher import SymbolicTeacher
from lore_lib.rng import generator
from lore_lib.training import nano
from lore_lib.training.nano import Corpus, collate, new_model, pretrain, sorted_batches
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.world import Query, World

TEXTS = (
    "query: matcha dress for women under 40\nprice: 142",
    "<think>\ncolor navy: azure near\n</think>\n[L2-Color Mismatch]<|im_end|>",
    "纯棉 连衣裙 女 新款",
    "👗👠 👩‍👧‍👦 ❤️",
    "שמלה כחולה عباية قطن",
    "naïve café größe ½ Ångström",
    "tab\tand  two  blanks and CRLF\r\n",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


def written(corpus: Corpus, index: int) -> str:
    return "".join(text for text, _ in corpus.segments(index))


@pytest.mark.parametrize("text", TEXTS)
def test_text_in_any_script_survives_the_tokenizer(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == unicodedata.normalize("NFC", text)


@settings(max_examples=200)
@given(text=st.text(max_size=40))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    backend = _BACKEND.backend_tokenizer
    ids = backend.encode(text, add_special_tokens=False).ids
    assert backend.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


_BACKEND = Qwen2Tokenizer(
    vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]
)


def test_the_saved_tokenizer_and_the_loaded_one_give_the_same_ids(vertical: Vertical, tmp_path: Path) -> None:
    """transformers loads any model of type qwen2 with Qwen2Tokenizer, whatever class was saved."""
    corpus = Corpus([vertical], 200, 17)
    trained = nano.train_tokenizer(nano.vocabulary_texts(corpus, 200), 700)
    trained.save_pretrained(tmp_path)
    new_model(trained, 64, 1, 0).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, *(written(corpus, i) for i in range(40))]
    assert trained(texts)["input_ids"] == loaded(texts)["input_ids"]
    assert loaded.chat_template == trained.chat_template
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(loaded) == len(trained) == 700


def test_markers_are_one_token_and_digits_stand_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    for marker in ("<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(tokenizer(marker)["input_ids"]) == 1
    assert tokenizer.tokenize("142")[-3:] == ["1", "4", "2"]
    assert tokenizer.decode(tokenizer("<think>x</think>")["input_ids"], skip_special_tokens=True) == (
        "<think>x</think>"
    )


def test_document_i_depends_on_seed_and_i_alone(vertical: Vertical) -> None:
    one, other = Corpus([vertical], 1000, 17), Corpus([vertical], 50, 17)
    forwards = [written(one, i) for i in range(50)]
    assert [written(other, i) for i in reversed(range(50))] == forwards[::-1]
    assert [written(Corpus([vertical], 1000, 18), i) for i in range(50)] != forwards
    assert len(set(forwards)) == 50


BUNDLED = [load_vertical("apparel_home"), load_vertical("beauty_care")]


def test_no_query_of_dev_or_test_and_no_reasoning_stands_in_the_corpus() -> None:
    """Queries are read back without the lexicon: every word is known, and the meaning is placed."""
    readers = [SymbolicTeacher(vertical, ()) for vertical in BUNDLED]
    nobody = {"item_id": "", "title": "", "cpv": "{}", "price": 1}
    corpus = Corpus(BUNDLED, 1_000_000, 17)
    read = 0
    for index in range(40_000, 1_000_000, 2400):
        text = written(corpus, index)
        assert "<think>" not in text
        for query in re.findall(r"^(?:<\|im_start\|>user\n)?query: (.*)$", text, re.MULTILINE):
            traces = [reader.write("q", query, nobody, None) for reader in readers]
            understood = [trace.demands for trace in traces if not trace.unknown]
            assert any(Query(query, "", demands).split == "train" for demands in understood)
            read += 1
    assert read > 200


def test_no_slang_and_no_selling_point_stands_in_the_corpus() -> None:
    corpus = Corpus(BUNDLED, 1_000_000, 17)
    slang = re.compile("|".join(rf"\b{surface}\b" for v in BUNDLED for surface in v.lexicon))
    texts = [written(corpus, index) for index in range(0, 240_000, 240)]
    plain = {value for v in BUNDLED for kind in v.dimensions.values() for value in kind.demands()}
    found = {word for text in texts for word in slang.findall(text)}
    assert found <= plain  # orchid is slang in one vertical and a shade in the other
    assert not any("selling_points" in text for text in texts)


def test_verdicts_in_the_corpus_are_those_of_everyday_sense(vertical: Vertical) -> None:
    """By the rules a shade of the same family is near; everyday sense takes it for a match."""
    corpus = Corpus([vertical], 1_000_000, 17)
    answers = [corpus.segments(index)[-1][0] for index in range(0, 100_000, 25)]
    siblings = [a for a in answers if re.match(r"fit \w+: category same, color sibling<", a)]
    assert siblings
    assert all(answer.startswith("fit match") for answer in siblings)


def test_the_held_out_documents_are_dev_queries_of_every_vertical() -> None:
    rows = Corpus(BUNDLED, 10, 17).held_out(60)
    words = [word for _, word in rows]
    assert set(words) == {"match", "near", "conflict", "unrelated"}
    assert max(words.count(word) for word in words) <= 30
    shades = [set(vertical.shades) for vertical in BUNDLED]
    for at, (context, _) in enumerate(rows):
        assert shades[at % 2] & set(re.findall(r"[a-z]+", context)) or "picture:" not in context


def test_a_document_keeps_its_loss_on_the_answer_and_fits_the_model(
    vertical: Vertical, tiny_model: Path
) -> None:
    tokenizer = Qwen2Tokenizer.from_pretrained(tiny_model)
    corpus = Corpus([vertical], 1_000_000, 17, tokenizer)
    lengths = []
    for index in (*range(0, 200_000, 2500), *range(200_000, 200_040)):
        row, pieces = corpus[index], corpus.segments(index)
        scored = [i for i in row["labels"] if i != -100]
        assert tokenizer.decode(row["input_ids"]) == "".join(text for text, _ in pieces)
        assert tokenizer.decode(scored) == "".join(text for text, taught in pieces if taught)
        assert all(label in (-100, i) for i, label in zip(row["input_ids"], row["labels"], strict=True))
        lengths.append(len(row["input_ids"]))
    assert max(lengths) < nano.MAX_POSITIONS
    with pytest.raises(ValueError, match="no tokenizer"):
        Corpus([vertical], 10, 17)[0]


def test_batches_are_padded_on_the_right_and_lose_no_row() -> None:
    rows = [{"input_ids": [7] * n, "labels": [-100] * (n - 1) + [7]} for n in (5, 1, 3, 2, 4)]
    batch = collate(rows[:2], 0)
    assert batch["input_ids"].tolist() == [[7] * 5 + [0] * 3, [7] + [0] * 7]  # widths are multiples of 8
    assert batch["labels"].tolist() == [[-100] * 4 + [7] + [-100] * 3, [7] + [-100] * 7]
    assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] + [0] * 7]
    sizes = [part["attention_mask"].sum(1).tolist() for part in sorted_batches(rows, 2, 0)]
    assert sizes == [[1, 2], [5], [3, 4]]


def test_the_world_draws_dev_queries_often_enough_to_hold_out(vertical: Vertical) -> None:
    rng = generator(17, "shares")
    splits = [World(vertical).draw_query(rng).split for _ in range(1500)]
    shares = np.array([splits.count(name) / 1500 for name in ("train", "dev", "test")])
    assert np.abs(shares - [0.85, 0.05, 0.10]).max() < 0.04


def test_a_new_model_depends_on_its_seed_and_leaves_the_global_stream_alone(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    before = torch.get_rng_state()
    first, again, other = (new_model(tokenizer, 64, 1, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    name = "model.embed_tokens.weight"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])


def test_a_killed_pretraining_resumes_to_the_very_same_weights(
    vertical: Vertical, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = Corpus([vertical], 10, 17).held_out(16)
    monkeypatch.setattr(Corpus, "held_out", lambda *_: held_out)
    run = partial(
        pretrain, [vertical], documents=96, seed=17, hidden=64, layers=1, vocabulary=400, batch_documents=4,
        checkpoint_steps=8,
    )  # fmt: skip

    whole = run(folder=tmp_path / "whole")
    calls = count(1)
    measure = nano.fit_accuracy

    def killed_at_the_second_checkpoint(*args: Any) -> float:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return float(measure(*args))

    monkeypatch.setattr(nano, "fit_accuracy", killed_at_the_second_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    resumed = run(folder=tmp_path / "killed")

    assert not (tmp_path / "killed" / "checkpoint.pt").exists()
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert {tensor.dtype for tensor in one.values()} == {torch.bfloat16}
    whole_rows, killed_rows = (read_jsonl(tmp_path / name / "history.jsonl") for name in ("whole", "killed"))
    assert [row | {"seconds": 0} for row in whole_rows] == [row | {"seconds": 0} for row in killed_rows]
    assert (whole["step"], whole["documents"]) == (resumed["step"], resumed["documents"]) == (24, 96)
