"""The distilled student, on a tiny random Qwen2 made here."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from lore_lib.errors import DataError, EngineError
from lore_lib.sampling.engine import chat_text
from lore_lib.serving.student import frame_of, load_student, measure_ms, train_student, vote_shares
from lore_lib.vertical.schema import LABELS

WORDS = "query item red blue green dress rug"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    words = ByteLevelBPETokenizer()
    words.train_from_iterator([WORDS, f" {WORDS}"] * 3, vocab_size=320, show_progress=False)
    words.save_model(str(folder))
    tokenizer = Qwen2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(folder)
    return str(folder)


def examples(count: int) -> pd.DataFrame:
    """The colours agree: mostly L4; they differ: mostly L2."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        asked, shown = rng.choice(["red", "blue"], 2)
        target = (0.0, 0.1, 0.1, 0.8) if asked == shown else (0.1, 0.8, 0.1, 0.0)
        rows.append((f"query {asked} dress item {shown} dress", *target))
    return pd.DataFrame(rows, columns=["prompt", *LABELS])


@pytest.fixture(scope="module")
def trained(base: str, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("student")
    return train_student(base, examples(256), folder, epochs=6, seed=3, max_tokens=32, learning_rate=5e-3)


def test_vote_shares_by_hand() -> None:
    samples = pd.DataFrame(
        {"pair_id": ["a"] * 4 + ["b"] * 2 + ["c"], "label": ["L4", "L4", "L2", "", "L1", "L1", ""]}
    )
    assert vote_shares(samples).to_dict("records") == [
        {"pair_id": "a", "L1": 0.0, "L2": pytest.approx(1 / 3), "L3": 0.0, "L4": pytest.approx(2 / 3)},
        {"pair_id": "b", "L1": 1.0, "L2": 0.0, "L3": 0.0, "L4": 0.0},
    ]


def test_student_learns_the_votes_not_only_the_winner(trained) -> None:  # type: ignore[no-untyped-def]
    prompts = ["query red dress item red dress", "query red dress item blue dress"]
    assert trained.predict(prompts) == ["L4", "L2"]
    shares = trained.predict_proba(prompts)
    assert shares == pytest.approx(np.array([[0, 0.1, 0.1, 0.8], [0.1, 0.8, 0.1, 0]]), abs=0.12)


def test_probabilities_do_not_depend_on_padding_or_batch(trained) -> None:  # type: ignore[no-untyped-def]
    prompts = ["query red dress item red dress", "query blue", "item green rug query red dress"]
    alone = np.concatenate([trained.predict_proba([prompt]) for prompt in prompts])
    assert trained.predict_proba(prompts) == pytest.approx(alone, abs=1e-5)
    assert trained.predict_proba(prompts, batch=2) == pytest.approx(alone, abs=1e-5)
    assert alone.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert trained.predict_proba([]).shape == (0, 4)


def test_saved_student_answers_the_same(trained, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    trained.save(tmp_path)
    prompts = examples(8)["prompt"].tolist()
    assert load_student(tmp_path, max_tokens=32).predict_proba(prompts) == pytest.approx(
        trained.predict_proba(prompts)
    )


def test_latency_is_measured_per_prompt(trained) -> None:  # type: ignore[no-untyped-def]
    times = trained.measure_latency_ms(examples(5)["prompt"].tolist())
    assert times.shape == (5,)
    assert (times > 0).all()


def test_every_request_is_timed_once_and_the_first_ones_warm_up() -> None:
    asked: list[int] = []
    assert measure_ms(asked.append, [1, 2, 3, 4, 5]).shape == (5,)
    assert asked == [1, 2, 3, 1, 2, 3, 4, 5]


def test_training_is_reproducible_silent_and_leaves_torch_alone(
    base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = torch.random.get_rng_state()
    first, second, other = (
        train_student(base, examples(32), tmp_path, epochs=1, seed=seed, max_tokens=32).predict_proba(
            ["query red"]
        )
        for seed in (1, 1, 2)
    )
    assert first == pytest.approx(second)
    assert first != pytest.approx(other)
    assert torch.equal(state, torch.random.get_rng_state())
    student = train_student(base, examples(8), tmp_path, epochs=1, seed=1, max_tokens=32)
    student.save(tmp_path)
    load_student(tmp_path, max_tokens=32)
    assert capfd.readouterr() == ("", ""), "no bars, and no report that the head is new"


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"(?s)no model at 'absent'.*serving\.student_base"):
        train_student("absent", examples(4), tmp_path, epochs=1, seed=0)


def test_targets_must_be_distributions(base: str, tmp_path: Path) -> None:
    for bad in (examples(4).iloc[:0], examples(4).assign(L1=5.0)):
        with pytest.raises(DataError, match="sum to 1"):
            train_student(base, bad, tmp_path, epochs=1, seed=0)


def test_a_chat_model_is_asked_where_it_would_write_its_label(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    frame = frame_of(tokenizer)
    framed = tokenizer.decode(frame.around(tokenizer("query: red dress")["input_ids"], 256))
    assert framed == chat_text(tokenizer, "query: red dress") + "[L"


def test_a_long_prompt_loses_its_own_end_and_never_the_frame(tiny_model: Path) -> None:
    frame = frame_of(AutoTokenizer.from_pretrained(tiny_model))
    cut = frame.around(list(range(1000)), 64)
    assert len(cut) == 64
    assert cut[: len(frame.before)] == frame.before
    assert cut[-len(frame.behind) :] == frame.behind
    assert frame.around([], 1) == [*frame.before, *frame.behind]


def test_a_model_without_template_has_its_special_tokens_around(base: str) -> None:
    assert frame_of(AutoTokenizer.from_pretrained(base)) == ([], [])
