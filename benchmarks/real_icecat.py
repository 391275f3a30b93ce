"""The label arm on real rows beside trivial baselines: `python benchmarks/real_icecat.py FOLDER`.

FOLDER holds the Chorus Icecat files (see `lore_lib/vertical/adapters/icecat.py`). It takes minutes on a CPU.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from lore_lib.artifacts import write_parquet
from lore_lib.config import load_config
from lore_lib.cot.synthesis import synthesise
from lore_lib.features.build import build_prompts, caption_items
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.rair.baselines import LexicalOverlap, MajorityLabel, TfidfLogistic
from lore_lib.rair.metrics import align, evaluate
from lore_lib.rng import generator
from lore_lib.sampling.engine import HfEngine, Sampling, load_model, load_tokenizer, sample_pairs
from lore_lib.sampling.pass_at_k import effects_table
from lore_lib.training.sft import sft_job, train_sft
from lore_lib.vertical.adapters import icecat
from lore_lib.vertical.definition import load_vertical

SEED, TRAIN, TEST, ANSWER_TOKENS = 17, 1200, 400, 16
SETTINGS = {"sft.epochs": 2, "sft.learning_rate": 3e-3, "sft.max_sequence_tokens": 512}


def main() -> None:
    """Train, sample, judge; print one table of scores and one of pass@k."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    tables, vertical = icecat.read(parser.parse_args().folder), load_vertical("apparel_home")
    captioner = PixelCaptioner(vertical)  # these rows have no pictures: it abstains
    prompts = build_prompts(tables, caption_items(tables["items"], captioner), "mid")
    prompts["query"] = prompts.query_id.map(tables["queries"].set_index("query_id")["query"])
    prompts["item_text"] = prompts.item_id.map(tables["items"].set_index("item_id").title)
    train, test = (
        prompts[prompts.split == split].sample(size, random_state=SEED).reset_index(drop=True)
        for split, size in (("train", TRAIN), ("test", TEST))
    )
    gold = test[["pair_id", "query_id", "label"]]
    with tempfile.TemporaryDirectory() as scratch:
        traces = synthesise("direct", tables, train, None, vertical, 0, 0, "drop")
        rows = write_parquet(traces, Path(scratch) / "train.parquet")
        config = load_config("demo", seed=SEED, overrides=SETTINGS)
        folder = str(train_sft(sft_job(config, "direct", rows, Path(scratch) / "model")))
        engine = HfEngine(load_model(folder), load_tokenizer(folder))
    drawn = sample_pairs(engine, test, "direct", Sampling(8, 1.0, ANSWER_TOKENS, seed=SEED))
    greedy = sample_pairs(engine, test, "direct", Sampling(1, 0.0, ANSWER_TOKENS))
    answers = {"lore-nano, labels": greedy[["pair_id", "label"]]}
    for baseline in (MajorityLabel(), LexicalOverlap(), TfidfLogistic()):
        answers[baseline.name] = gold.assign(label=baseline.fit(train).predict(test))[["pair_id", "label"]]
    scores = {
        name: evaluate(align(answer, gold), 1000, generator(SEED, "icecat", "scores"))
        for name, answer in answers.items()
    }
    print(f"{len(train)} train pairs; {len(test)} test pairs of {test.query_id.nunique()} unseen queries")
    print(pd.concat(scores, names=["system"]).reset_index(0).round(3).to_string(index=False))
    print(effects_table(drawn, gold, 8, 1000, generator(SEED, "icecat")).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
