"""A small classifier distilled from the LLM's votes: the judge of the torso, and the fallback of the tail."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats
from lore_lib.vertical.schema import LABELS

WARM_UP_CALLS = 3  # untimed calls before latencies are taken


def vote_shares(samples: pd.DataFrame) -> pd.DataFrame:
    """Soft targets: the share of each label among a pair's parsed samples.

    Args:
        samples: one system's rows: pair_id, label ("" when not parsed).

    Returns:
        pair_id, L1, L2, L3, L4; the four sum to 1. Pairs without a parsed sample have no target and are
        left out.
    """
    parsed = samples[samples["label"] != ""]
    shares = pd.crosstab(parsed["pair_id"], parsed["label"], normalize="index")
    return shares.reindex(columns=list(LABELS), fill_value=0.0).rename_axis(columns=None).reset_index()


@dataclass(frozen=True)
class Student:
    """A four-way classifier of prompts, on the CPU in float32."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int

    def predict_proba(self, prompts: list[str], batch: int = 64) -> Floats:
        """Probability of L1..L4 per prompt, (prompts, 4)."""
        parts = [np.empty((0, len(LABELS)))]
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(prompts), batch):
                inputs = self.tokenizer(
                    prompts[start : start + batch],
                    truncation=True,
                    max_length=self.max_tokens,
                    padding=True,
                    return_tensors="pt",
                )
                parts.append(self.model(**inputs).logits.softmax(-1).double().numpy())
        return np.concatenate(parts)

    def predict(self, prompts: list[str]) -> list[str]:
        """The most probable label of each prompt."""
        return [LABELS[best] for best in self.predict_proba(prompts).argmax(axis=1)]

    def measure_latency_ms(self, prompts: list[str]) -> Floats:
        """Milliseconds per prompt, asked one at a time on this machine (tokenizing included), (prompts,)."""
        for prompt in prompts[:WARM_UP_CALLS]:
            self.predict_proba([prompt])
        stamps = [perf_counter()]
        for prompt in prompts:
            self.predict_proba([prompt])
            stamps.append(perf_counter())
        return np.asarray(np.diff(stamps) * 1000)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer; read them back with `load_student`."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_student(folder: Path, max_tokens: int) -> Student:
    """Read a student written by `Student.save`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return Student(model, AutoTokenizer.from_pretrained(folder), max_tokens)


def train_student(
    base: Path,
    examples: pd.DataFrame,
    folder: Path,
    epochs: int,
    seed: int,
    max_tokens: int = 256,
    learning_rate: float = 5e-4,
    batch_pairs: int = 32,
) -> Student:
    """Distil vote shares into a classifier that starts from a pretrained causal LM.

    Args:
        base: folder of the LM and its tokenizer; a fresh four-way head is put on its last token.
        examples: prompt, and the soft targets L1..L4 (see `vote_shares`).
        folder: where the trainer may write.
        epochs: passes over the examples.
        seed: of the head's weights and of the order of examples.
        max_tokens: longer prompts are cut at the end.
        learning_rate: peak of the linear schedule (AdamW).
        batch_pairs: examples per update.

    Raises:
        DataError: no examples, or targets that do not sum to 1.
    """
    targets = examples[list(LABELS)].to_numpy(dtype=np.float32)
    if len(targets) == 0 or not np.allclose(targets.sum(axis=1), 1, atol=1e-4):
        raise DataError(f"found {len(targets)} examples; give 1 or more whose L1..L4 sum to 1 (vote_shares).")
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=len(LABELS), pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
        )
        encoded = tokenizer(examples["prompt"].tolist(), truncation=True, max_length=max_tokens)["input_ids"]
        trainer = _SoftTargetTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder),
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_pairs,
                learning_rate=learning_rate,
                seed=seed,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=[
                {"input_ids": ids, "labels": row.tolist()} for ids, row in zip(encoded, targets, strict=True)
            ],
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)  # the library never prints
        trainer.train()
    return Student(model, tokenizer, max_tokens)


class _SoftTargetTrainer(Trainer):
    """Cross-entropy against a distribution over labels instead of one label."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        targets = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits, targets)
        return (loss, outputs) if return_outputs else loss
