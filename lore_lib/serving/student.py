"""A small classifier distilled from the LLM's votes: the judge of the torso, and the fallback of the tail."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from transformers.utils import logging

from lore_lib.errors import DataError, EngineError
from lore_lib.sampling.engine import chat_text, no_weight_bars, resolve_model
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.frame import Frame
from lore_lib.vertical.schema import LABELS

WARM_UP_CALLS = 3  # untimed calls before latencies are taken
LABEL_OPENING = "[L"  # a label begins so, see `completion`
SLOT = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for the prompt while its frame is read


def measure_ms(call: Callable[[Any], object], requests: Sequence[Any]) -> Floats:
    """Milliseconds per request, asked one at a time on this machine after untimed calls, (requests,)."""
    for request in requests[:WARM_UP_CALLS]:
        call(request)
    stamps = [perf_counter()]
    for request in requests:
        call(request)
        stamps.append(perf_counter())
    return np.asarray(np.maximum(np.diff(stamps) * 1000, 1e-6))  # a coarse clock may read 0


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


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """Where a student had best be asked.

    A chat model is asked where it would write its label: its template, then the opening of a label. There its
    last state already holds a verdict; at the end of a bare prompt it holds none. Any other model has its own
    special tokens, such as [CLS] and [SEP].
    """
    if tokenizer.chat_template is None:
        plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        return Frame(whole[:start], whole[start + len(plain) :])
    before, _, behind = chat_text(tokenizer, SLOT).partition(SLOT)
    return Frame(
        *(tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, behind + LABEL_OPENING))
    )


@dataclass(frozen=True)
class Student:
    """A four-way classifier of prompts, on the CPU in float32."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int

    @cached_property
    def frame(self) -> Frame:
        """See `frame_of`."""
        return frame_of(self.tokenizer)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of each prompt in its frame."""
        bare = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"] if prompts else []
        return [self.frame.around(ids, self.max_tokens) for ids in bare]

    def predict_proba(self, prompts: list[str], batch: int = 64) -> Floats:
        """Probability of L1..L4 per prompt, (prompts, 4)."""
        parts = [np.empty((0, len(LABELS)))]
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(prompts), batch):
                ids = self.encode(prompts[start : start + batch])
                inputs = self.tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
                parts.append(self.model(**inputs).logits.softmax(-1).double().numpy())
        return np.concatenate(parts)

    def predict(self, prompts: list[str]) -> list[str]:
        """The most probable label of each prompt."""
        return [LABELS[best] for best in self.predict_proba(prompts).argmax(axis=1)]

    def measure_latency_ms(self, prompts: list[str]) -> Floats:
        """`measure_ms` of judging one prompt, tokenizing included, (prompts,)."""
        return measure_ms(lambda prompt: self.predict_proba([prompt]), prompts)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer; read them back with `load_student`."""
        with no_weight_bars():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_student(folder: Path, max_tokens: int) -> Student:
    """Read a student written by `Student.save`."""
    with no_weight_bars():
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return Student(model, AutoTokenizer.from_pretrained(folder), max_tokens)


def train_student(
    base: str,
    examples: pd.DataFrame,
    folder: Path,
    epochs: int,
    seed: int,
    max_tokens: int = 256,
    learning_rate: float = 5e-4,
    batch_pairs: int = 32,
) -> Student:
    """Distil vote shares into a classifier that starts from a pretrained model.

    Args:
        base: folder or hub name of an encoder or a causal LM, which gets a fresh four-way head.
        examples: prompt, and the soft targets L1..L4 (see `vote_shares`).
        folder: where the trainer may write.
        epochs: passes over the examples.
        seed: of the head's weights and of the order of examples.
        max_tokens: longer prompts are cut at the end.
        learning_rate: peak of the linear schedule (AdamW).
        batch_pairs: examples per update.

    Raises:
        DataError: no examples, or targets that do not sum to 1.
        EngineError: no such folder or hub model.
    """
    targets = examples[list(LABELS)].to_numpy(dtype=np.float32)
    if len(targets) == 0 or not np.allclose(targets.sum(axis=1), 1, atol=1e-4):
        raise DataError(f"found {len(targets)} examples; give 1 or more whose L1..L4 sum to 1 (vote_shares).")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer = _with_fresh_head(base)
        student = Student(model, tokenizer, max_tokens)
        encoded = student.encode(examples["prompt"].tolist())
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
    return student


def _with_fresh_head(base: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base with a random four-way head, without transformers' report that its weights lack the head."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(base))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        with no_weight_bars():
            model = AutoModelForSequenceClassification.from_pretrained(
                resolve_model(base),
                num_labels=len(LABELS),
                pad_token_id=tokenizer.pad_token_id,
                dtype=torch.float32,
            )
    except OSError as error:
        raise EngineError(f"no model at {base!r}: {error}. Set serving.student_base.") from error
    finally:
        logging.set_verbosity(level)
    return model, tokenizer


class _SoftTargetTrainer(Trainer):
    """Cross-entropy against a distribution over labels instead of one label."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        targets = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits, targets)
        return (loss, outputs) if return_outputs else loss
