"""Real pairs through the kit at smoke size: adapter, prompts, tuning, sampling, scores beside a baseline."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lore_lib.artifacts import write_parquet
from lore_lib.cot.synthesis import synthesise
from lore_lib.features.build import build_prompts, caption_items
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.rair.baselines import MajorityLabel
from lore_lib.rair.metrics import align, compare, evaluate
from lore_lib.rng import generator
from lore_lib.sampling.engine import HfEngine, Sampling, chat_text, load_model, load_tokenizer, sample_pairs
from lore_lib.sampling.pass_at_k import effects_table
from lore_lib.training.sft import SftJob, train_sft, training_history
from lore_lib.vertical.adapters import icecat
from lore_lib.vertical.contract import SPLITS
from lore_lib.vertical.definition import Vertical

pytestmark = pytest.mark.real_data

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT.parent / "shared" / "data" / "chorus_icecat"
POSITIONS = 512  # of lore-nano
COMPLETION = 16  # tokens for a label alone
TRAIN, TEST = 256, 40  # pairs


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return icecat.read(FOLDER)


@pytest.fixture(scope="module")
def rows(tables: dict[str, pd.DataFrame], vertical: Vertical) -> pd.DataFrame:
    captions = caption_items(tables["items"], PixelCaptioner(vertical))
    assert captions.isna().all(), "the files hold no pictures"
    return build_prompts(tables, captions, "mid")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    """lore-nano where it has been pretrained, else a random model of the same kind."""
    nano = ROOT / "data" / "models" / "lore-nano"
    return nano if nano.is_dir() else tiny_model


def test_the_files_are_read_whole(tables: dict[str, pd.DataFrame]) -> None:
    pairs = tables["pairs"]
    assert {name: len(table) for name, table in tables.items()} == {
        "items": 2517,
        "queries": 135,
        "pairs": 3668,
        "clicks": 0,
    }
    assert pairs.label.value_counts().to_dict() == {"L1": 1853, "L2": 238, "L3": 105, "L4": 1472}
    assert pairs.groupby("query_id").split.nunique().max() == 1
    assert [int((tables["queries"].split == split).sum()) for split in SPLITS] == [87, 20, 28]


def test_prompts_leave_room_for_the_answer(rows: pd.DataFrame, model: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    texts = [chat_text(tokenizer, prompt) for prompt in rows.prompt]
    longest = max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    assert longest + 112 <= POSITIONS, "even a chain of thought fits"


@pytest.mark.timeout(900)
def test_a_tuned_model_is_scored_beside_the_majority(
    tables: dict[str, pd.DataFrame],
    rows: pd.DataFrame,
    model: Path,
    tiny_model: Path,
    vertical: Vertical,
    tmp_path: Path,
) -> None:
    def some(split: str, count: int) -> pd.DataFrame:
        return rows[rows.split == split].sample(count, random_state=17).reset_index(drop=True)

    train, test = some("train", TRAIN), some("test", TEST)
    nothing: Any = None  # the direct arm has no teacher, so nobody looks at pictures
    traces = synthesise("direct", tables, train, nothing, vertical, 0, 0, "drop")
    job = SftJob(
        "direct",
        str(model),
        write_parquet(traces[traces.kept], tmp_path / "train.parquet"),
        tmp_path / "model",
        epochs=4 if model == tiny_model else 1.5,  # a random model has the answer's form to learn as well
        learning_rate=6e-3,
        batch_pairs=16,
        warmup_share=0.1,
        max_sequence_tokens=POSITIONS,
        checkpoint_steps=1000,
    )
    tuned = train_sft(job)
    losses = [row["loss"] for row in training_history(tuned)]
    assert losses[-1] < 0.7 * losses[0]

    engine = HfEngine(load_model(str(tuned)), load_tokenizer(str(tuned)))
    samples = sample_pairs(engine, test, "direct", Sampling(8, 1.0, COMPLETION, seed=17))
    gold = test[["pair_id", "query_id", "label"]]
    table = effects_table(samples, gold, 8, 200, generator(17, "icecat")).set_index("metric")
    assert len(samples) == TEST * 8
    assert table.value["pass@8"] >= table.value["pass@1"] > 0
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    assert table.parse_rate.iloc[0] > 0.5

    greedy = sample_pairs(engine, test, "direct", Sampling(1, 0.0, COMPLETION))
    queries = tables["queries"].set_index("query_id")["query"]
    fitted = train.assign(query=train.query_id.map(queries), item_text=train.prompt)
    asked = test.assign(query=test.query_id.map(queries), item_text=test.prompt)
    majority = MajorityLabel().fit(fitted).predict(asked)
    judged = align(greedy[["pair_id", "label"]], gold)
    baseline = align(gold.assign(label=majority)[["pair_id", "label"]], gold)
    ours, theirs = (
        evaluate(frame, 200, generator(17, "icecat", "scores")).set_index("metric")
        for frame in (judged, baseline)
    )
    assert theirs.value["acc@4"] == pytest.approx((gold.label == majority[0]).mean())
    assert theirs.value["kappa"] == 0
    assert ours.value["parse_rate"] > 0.9
    assert (ours.n == TEST).all()
    difference = compare(judged, baseline, 200, generator(17, "icecat", "paired")).set_index("metric")
    assert difference.difference["acc@4"] == pytest.approx(ours.value["acc@4"] - theirs.value["acc@4"])
