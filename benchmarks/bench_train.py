"""Speed of supervised tuning and of sampling on this CPU, beside what one would write without the kit.

    OMP_NUM_THREADS=1 python benchmarks/bench_train.py [--sizes 80 320] [--only sampling --model FOLDER]

Pairs of the bundled world with progressive chains. Tuning: one pass over so many pairs, batch 16, beside
TRL's ``SFTTrainer`` as it comes (padded batches in random order); then at three model sizes, with the share
that it reaches of one large matrix product in the same minute. Sampling: 8 completions for each of so many
prompts from a model tuned a little, or from the one of ``--model``, beside
``model.generate(num_return_sequences=8)`` prompt by prompt, and vLLM where it is installed. ``ways.py`` says
what is measured.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from ways import print_table

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.config import load_config
from lore_lib.cot.arms import open_synthesis
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.synthesis import pair_rows
from lore_lib.features.build import build_prompts, caption_items
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.sampling.engine import HfEngine, Sampling, chat_text, load_model, load_tokenizer
from lore_lib.training.estimate import matmul_rate, training_needs
from lore_lib.training.nano import new_model
from lore_lib.training.sft import SftJob, quiet_trl, sft_config, sft_job, sft_trainer, train_sft
from lore_lib.vertical.definition import load_vertical
from lore_lib.vertical.world import generate_tables

STOCK, GROUPED, OURS = "SFTTrainer as it comes", "SFTTrainer, by length", "train_sft"
TUNING = (STOCK, GROUPED, OURS)
LOOP, ENGINE, VLLM = "model.generate per prompt", "HfEngine", "VllmEngine"
SAMPLING = (LOOP, ENGINE, *([VLLM] if importlib.util.find_spec("vllm") else []))
MODELS = {"1x": (192, 5), "3x": (320, 6), "10x": (512, 8)}  # hidden size, layers


def write_rows(path: Path, pairs: int) -> Path:
    """Progressive chains of the bundled world's train pairs."""
    config, vertical = load_config("demo"), load_vertical("apparel_home")
    tables = generate_tables(vertical, {"train": -(-pairs // 3)}, 4, 2, 17)
    captions = caption_items(tables["items"], PixelCaptioner(vertical))
    prompts = build_prompts(tables, captions, "mid")
    knowledge = KnowledgeIndex.of(tables, config.cot)
    rows = open_synthesis(config, "progressive", vertical, knowledge)(pair_rows(tables, prompts, captions))
    return write_parquet(rows[rows.kept].head(pairs), path)


def bench_job(rows: Path, out: Path) -> SftJob:
    """One epoch of the demo's settings."""
    return replace(
        sft_job(load_config("demo"), "bench", rows, out), epochs=1, checkpoint_steps=10**6, device="cpu"
    )


def prepare_tuning(
    rows: Path, sizes: dict[str, tuple[int, int]], way: str, pairs: int
) -> Callable[[], object]:
    """A trainer over the first pairs, ready to train."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTTrainer

    torch.set_num_threads(1)
    disable_progress_bars()
    job = bench_job(rows, Path(tempfile.mkdtemp()))
    tokenizer, table = load_tokenizer(job.base), read_parquet(rows).head(pairs)
    data = pd.DataFrame(
        {"prompt": [chat_text(tokenizer, p) for p in table.prompt], "completion": table.completion}
    )
    model = new_model(tokenizer, *sizes[way], 17) if way in sizes else load_model(job.base, device="cpu")
    with quiet_trl():
        if way in (STOCK, GROUPED):
            how = "group_by_length" if way == GROUPED else "random"
            arguments = replace(sft_config(job), train_sampling_strategy=how)
            dataset = Dataset.from_pandas(data, preserve_index=False)
            trainer = SFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer)
        else:
            trainer = sft_trainer(job, model, tokenizer, data)
    trainer.log = lambda *_, **__: None
    trainer.args.save_strategy = "no"
    return trainer.train


def prepare_sampling(model: Path, rows: Path, way: str, prompts: int) -> Callable[[], object]:
    """An engine, ready to draw 8 completions for each of the first prompts."""
    torch.set_num_threads(1)
    tokenizer, asked = load_tokenizer(str(model)), read_parquet(rows).prompt.head(prompts).tolist()
    sampling = Sampling()
    if way == VLLM:
        from lore_lib.sampling.vllm_engine import open_vllm

        return functools.partial(
            open_vllm(str(model), tokenizer, "float32", enforce_eager=True).generate, asked, sampling
        )
    loaded = load_model(str(model), device="cpu")
    if way == ENGINE:
        return functools.partial(HfEngine(loaded, tokenizer).generate, asked, sampling)

    def loop() -> list[torch.Tensor]:
        how = {
            "do_sample": True,
            "top_k": 0,
            "num_return_sequences": 8,
            "max_new_tokens": sampling.max_completion_tokens,
        }
        texts = [tokenizer(chat_text(tokenizer, one), return_tensors="pt") for one in asked]
        return [loaded.generate(**text, **how, pad_token_id=tokenizer.pad_token_id) for text in texts]

    return loop


def print_share(rows: Path, sizes: dict[str, tuple[int, int]], pairs: int) -> None:
    """Operations a second of tuning, as a share of a large product's."""
    torch.set_num_threads(1)
    tokenizer, table = load_tokenizer(bench_job(rows, rows).base), read_parquet(rows).head(pairs)
    whole = [chat_text(tokenizer, p) + c for p, c in zip(table.prompt, table.completion, strict=True)]
    tokens = sum(len(ids) + 1 for ids in tokenizer(whole, add_special_tokens=False)["input_ids"])
    labelled = sum(len(ids) + 1 for ids in tokenizer(table.completion.tolist())["input_ids"])
    for name, size in sizes.items():
        work = prepare_tuning(rows, sizes, name, pairs)
        shape = new_model(tokenizer, *size, 17).config
        needs = training_needs(shape, "float32", 16, tokens // pairs, labelled // pairs, tokens)
        best, start = matmul_rate("cpu", "float32"), time.process_time()
        work()
        rate = needs.operations / (time.process_time() - start)
        print(
            f"{name:>4}: {needs.parameters / 1e6:5.1f} M parameters, {tokens / pairs:.0f} tokens a pair, "
            f"{rate / 1e9:.0f} of {best / 1e9:.0f} GFLOP/s ({rate / best:.0%})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[80, 320], help="pairs or prompts (default: 80 320)"
    )
    parser.add_argument(
        "--only", choices=["tuning", "models", "sampling"], help="one of the three (default: all)"
    )
    parser.add_argument("--model", type=Path, help="folder of a tuned model to sample from")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder) / "rows.parquet", max(asked.sizes))
        if asked.only in (None, "tuning"):
            print_table(TUNING, asked.sizes, functools.partial(prepare_tuning, rows, {}))
        if asked.only in (None, "models"):
            print_table(MODELS, asked.sizes[:1], functools.partial(prepare_tuning, rows, MODELS))
            print_share(rows, MODELS, asked.sizes[0])
        if asked.only in (None, "sampling"):
            model = asked.model or train_sft(bench_job(rows, Path(folder) / "model"))
            sampling = functools.partial(prepare_sampling, model, rows)
            print_table(SAMPLING, asked.sizes, sampling, "prompts")


if __name__ == "__main__":
    main()
