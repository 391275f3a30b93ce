"""Pixels in place of captions: a small encoder gives the student a few soft tokens for the picture's line.

The student is the same causal language model. Its embeddings of ``PICTURE_TOKENS`` placeholders are replaced
by what :class:`PatchEncoder` makes of the picture, as vision-language models do (LLaVA, arXiv 2304.08485): a
first lesson in naming what captioned pictures show, then both are tuned together on chains. For pictures of
the synthetic world, 32 x 32; a run on photographs wants a vision-language model, whose encoder has seen more.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.completion import parse
from lore_lib.errors import DataError
from lore_lib.features.build import build_prompts
from lore_lib.features.template import load_template
from lore_lib.sampling.engine import chat_text, load_model, load_tokenizer, read_tokens
from lore_lib.training.checkpoints import claim_folder, last_whole_checkpoint
from lore_lib.training.sft import ELSEWHERE, FILES, SftJob, quiet_trl, sft_config, weights_type
from lore_lib.vertical.picture import SIDE

PICTURE_TOKENS = 4
"""Soft tokens of a picture: one for each quarter."""

PICTURE = "<|picture|>"
"""Where they go in a prompt. No text of a seller or shopper can hold it: its brackets are neutralised."""

SHARPNESS = 20
"""By which the cosine of a soft token and a word is multiplied in the first lesson."""

LESSON_EPOCHS, LESSON_RATE = 8, 4e-3
"""Of the first lesson: some seconds for the pictures of the bundled world."""

_MARK = "\ufffc"  # what the picture's line holds until PICTURE takes its place: one unlikely character
_IGNORED = -100
_EMBEDDED = ("input_ids", "seen", "pictures")


class PatchEncoder(nn.Module):
    """A picture to ``PICTURE_TOKENS`` vectors: patches of 4 x 4, of 8 x 8, then the mean of each quarter.

    Args:
        width: of the language model's embeddings.
        scale: root mean square of these, so that soft tokens begin as loud as words.
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4), nn.GELU(), nn.Conv2d(32, 48, 2, stride=2), nn.GELU()
        )
        self.project, self.norm = nn.Linear(48, width), nn.RMSNorm(width)
        nn.init.constant_(self.norm.weight, scale)

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, 32, 32) in [0, 1] -> (n, PICTURE_TOKENS, width)."""
        quarters = nn.functional.adaptive_avg_pool2d(self.patches(2 * pictures - 1), 2)
        soft: Tensor = self.norm(self.project(quarters.flatten(2).transpose(1, 2)))
        return soft


def pixels(picture: bytes) -> NDArray[np.uint8]:
    """A picture as the encoder reads it: (3, 32, 32), uint8; without bytes it is white.

    Raises:
        DataError: the bytes are no picture.
    """
    if not picture:
        return np.full((3, SIDE, SIDE), 255, np.uint8)
    try:
        with Image.open(io.BytesIO(picture), formats=("PNG", "JPEG")) as image:
            small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    except Exception as error:  # a decoder given hostile bytes may raise anything
        raise DataError(
            f"a picture of {len(picture)} bytes cannot be read; give PNG or JPEG bytes"
        ) from error
    return np.array(small, np.uint8).transpose(2, 0, 1)


def pixel_prompts(
    tables: Mapping[str, pd.DataFrame], template: str, budget: str, tokenizer: PreTrainedTokenizerBase | None
) -> pd.DataFrame:
    """The prompts of all pairs, with ``PICTURE`` where a caption would stand, and the column ``picture``.

    Else as :func:`lore_lib.features.build.build_prompts` writes them; items without a picture have no such
    line.
    """
    items, wording = tables["items"], load_template(template)
    marks = [_MARK if png else None for png in items["picture"]]
    captions = pd.Series(marks, index=items["item_id"].to_numpy(), dtype=object)
    told = build_prompts(tables, captions, budget, template=wording, tokenizer=tokenizer)
    line = f"\n{wording.sections['picture'].head}"  # no seller can begin a line
    prompts = told["prompt"].str.replace(line + _MARK, line + PICTURE, regex=False)
    pictures = items.set_index("item_id")["picture"]
    return told.assign(prompt=prompts, picture=told["item_id"].map(pictures))


def attach_eye(model: PreTrainedModel, seed: int) -> PatchEncoder:
    """Give a language model an encoder, its submodule ``eye``; the same seed gives the same one."""
    table = model.get_input_embeddings().weight
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        eye = PatchEncoder(table.shape[1], float(table.detach().square().mean().sqrt()))
    model.add_module("eye", eye.to(table))
    return eye


def embed(model: PreTrainedModel, input_ids: Tensor, seen: Tensor, pictures: Tensor) -> Tensor:
    """The embeddings of a batch, those of its pictures in place: (rows, tokens, width).

    Args:
        model: with an eye.
        input_ids: (rows, tokens).
        seen: (rows, tokens), true at the places of soft tokens.
        pictures: (pictures, 3, 32, 32) uint8, of the rows that show one, in their order.
    """
    words: Tensor = model.get_input_embeddings()(input_ids)
    soft: Tensor = model.get_submodule("eye")(pictures.to(words) / 255)
    return words.masked_scatter(seen.unsqueeze(-1), soft.to(words))


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, picture: bytes, completion: str | None = None
) -> dict[str, Any]:
    """One pair as a row of a batch: input_ids, seen, labels (of the completion alone) and pixels.

    Args:
        tokenizer: of the model.
        prompt: the user's turn.
        picture: goes where the prompt has ``PICTURE``; left out where it has none.
        completion: to be learnt; None to be written.
    """
    before, mark, behind = chat_text(tokenizer, prompt).partition(f" {PICTURE}")
    head, tail, taught = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, behind, completion or "")
    )
    taught += [] if completion is None else [tokenizer.eos_token_id]
    soft = [tokenizer.pad_token_id] * PICTURE_TOKENS if mark else []
    asked = head + soft + tail
    return {
        "input_ids": asked + taught,
        "seen": [False] * len(head) + [True] * len(soft) + [False] * (len(tail) + len(taught)),
        "labels": [_IGNORED] * len(asked) + taught,
        "pixels": pixels(picture) if mark else None,
    }


def collate(rows: Sequence[Mapping[str, Any]], pad: int, side: str = "right") -> dict[str, Tensor]:
    """Rows of :func:`encode` as one batch, padded on one side."""

    def padded(columns: list[list[Any]], dtype: torch.dtype, value: float) -> Tensor:
        tensors = [torch.tensor(column, dtype=dtype) for column in columns]
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

    columns = {name: [row[name] for row in rows] for name in ("input_ids", "seen", "labels")}
    shown = np.array([row["pixels"] for row in rows if row["pixels"] is not None], np.uint8)
    return {
        "input_ids": padded(columns["input_ids"], torch.long, pad),
        "seen": padded(columns["seen"], torch.bool, False),
        "labels": padded(columns["labels"], torch.long, _IGNORED),
        "attention_mask": padded([[1] * len(ids) for ids in columns["input_ids"]], torch.long, 0),
        "pictures": torch.from_numpy(shown.reshape(-1, 3, SIDE, SIDE)),
    }


class _Trainer(Trainer):
    """The stock one, which puts the pictures among the words first."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        told = embed(self.accelerator.unwrap_model(model), *(inputs[name] for name in _EMBEDDED))
        rest = {name: value for name, value in inputs.items() if name not in _EMBEDDED}
        return super().compute_loss(
            model, {**rest, "inputs_embeds": told}, return_outputs, num_items_in_batch
        )


class _Lesson(nn.Module):
    """An eye and the words that its soft tokens are to be nearest to, among all that the model knows."""

    words: Tensor

    def __init__(self, eye: PatchEncoder, words: Tensor) -> None:
        super().__init__()
        self.eye = eye
        self.register_buffer("words", nn.functional.normalize(words.detach(), dim=-1), persistent=False)

    def forward(self, pictures: Tensor, said: Tensor) -> dict[str, Tensor]:
        """Pictures (n, 3, 32, 32) uint8 and the token of each soft token (n, PICTURE_TOKENS) -> the loss."""
        soft = nn.functional.normalize(self.eye(pictures / 255), dim=-1)
        return {
            "loss": nn.functional.cross_entropy(
                (SHARPNESS * soft @ self.words.T).flatten(0, 1), said.flatten()
            )
        }


def teach_eye(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lessons: pd.DataFrame, seed: int
) -> None:
    """Teach a model's eye, and nothing else of it, to name what captioned pictures show.

    The soft tokens of a picture are drawn to the embeddings of its caption's words, in turn: of "navy,
    striped" to navy, striped, navy, striped. Without this first lesson the few chains that speak of a colour
    teach it next to nothing.

    Args:
        model: with an eye.
        tokenizer: of the model.
        lessons: picture, caption (values with ", " between them); of no pair that is judged.
        seed: of the order.

    Raises:
        DataError: no captioned picture.
    """
    told = lessons[lessons["caption"].map(bool) & (lessons["picture"].map(len) > 0)]
    if told.empty:
        raise DataError(f"none of {len(lessons)} train items has a picture and a caption; pixels need a few")
    words = [[f" {value}" for value in caption.split(", ")] for caption in told["caption"]]
    tokens = [tokenizer("".join(values), add_special_tokens=False)["input_ids"] for values in words]
    said = [torch.tensor((ids * PICTURE_TOKENS)[:PICTURE_TOKENS]) for ids in tokens]
    shown = [torch.from_numpy(pixels(picture)) for picture in told["picture"]]
    eye = model.get_submodule("eye")
    assert isinstance(eye, PatchEncoder)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=LESSON_EPOCHS,
            learning_rate=LESSON_RATE,
            per_device_train_batch_size=16,
            lr_scheduler_type="cosine",
            seed=seed,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            use_cpu=model.device.type == "cpu",
        )
        rows = [{"pictures": one, "said": two} for one, two in zip(shown, said, strict=True)]
        lesson = _Lesson(eye, model.get_input_embeddings().weight)
        trainer = Trainer(lesson, arguments, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def sighted(
    base: str, lessons: pd.DataFrame | None, seed: int, dtype: str = "float32", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model with an eye that has had its first lesson (:func:`teach_eye`), or none yet; and its
    tokenizer."""
    model, tokenizer = load_model(base, dtype, device), load_tokenizer(base)
    attach_eye(model, seed)
    if lessons is not None:
        teach_eye(model, tokenizer, lessons, seed)
    return model, tokenizer


@dataclass(frozen=True)
class PixelJob:
    """Tune one student and let it judge; picklable, for :func:`lore_lib.parallel.run_parallel`.

    Attributes:
        tune: its training; the rows have a column ``picture`` as well (from :func:`pixel_prompts`). Prompts
            without ``PICTURE`` make a student of words alone, on the same schedule.
        lessons: Parquet file with picture, caption: what the eye learns first.
        judges: Parquet files with pair_id, prompt, picture of the pairs to judge, and where the answers go;
            files that are there already are kept.
        max_completion_tokens: of an answer, which is greedy.
        batch_completions: decoded at once.
    """

    tune: SftJob
    lessons: Path
    judges: tuple[tuple[Path, Path], ...]
    max_completion_tokens: int
    batch_completions: int


def run_pixels(job: PixelJob) -> list[Path]:
    """Do one job and return the files of its answers; finished answers are kept, the model is not."""
    answers = [path for _, path in job.judges]
    if not all(path.exists() for path in answers):
        model, tokenizer = train_pixels(job.tune, job.lessons)
        for asked, path in job.judges:
            rows = read_parquet(asked)
            said = judge_pixels(model, tokenizer, rows, job.max_completion_tokens, job.batch_completions)
            write_parquet(said, path)
    shutil.rmtree(job.tune.out, ignore_errors=True)
    return answers


def train_pixels(job: SftJob, lessons: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Give a language model an eye and tune both on the schedule of a job; all weights, whatever
    ``lora_rank``.

    A killed training goes on from its last checkpoint.

    Raises:
        DataError: no rows, a row longer than ``max_sequence_tokens``, a picture that is none, or no lessons.
        ArtifactError: the folder holds the checkpoints of another job.
    """
    tokenizer, rows = load_tokenizer(job.base), read_parquet(job.rows)
    columns = zip(rows["prompt"], rows["picture"], rows["completion"], strict=True)
    data = [encode(tokenizer, *row) for row in columns]
    longest = max((len(row["input_ids"]) for row in data), default=0)
    if not 0 < longest <= job.max_sequence_tokens:
        raise DataError(
            f"{len(data)} rows of up to {longest} tokens; give at least 1, and none longer than "
            f"max_sequence_tokens={job.max_sequence_tokens}: --set sft.max_sequence_tokens={longest}"
        )
    claim_folder(job, job.out, ELSEWHERE, FILES)
    begun = last_whole_checkpoint(job.out)
    looks = begun is None and rows["prompt"].str.contains(PICTURE, regex=False).any()
    told = read_parquet(lessons) if looks else None
    model, tokenizer = sighted(job.base, told, job.seed, weights_type(job.dtype, 0), job.device)
    arguments = sft_config(job)
    arguments.remove_unused_columns = False
    arguments.train_sampling_strategy = "group_by_length"
    pad = tokenizer.pad_token_id
    trainer = _Trainer(model.train(), arguments, lambda batch: collate(batch, pad), data)
    trainer.remove_callback(PrinterCallback)
    with quiet_trl():
        trainer.train(resume_from_checkpoint=begun)
    return model.eval(), tokenizer


@torch.no_grad()
def judge_pixels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: pd.DataFrame,
    max_completion_tokens: int,
    batch_completions: int = 64,
) -> pd.DataFrame:
    """One greedy answer per pair, read by the one grammar.

    Args:
        model: with an eye.
        tokenizer: of the model.
        asked: pair_id, prompt, picture.
        max_completion_tokens: longer answers are cut.
        batch_completions: decoded at once.

    Returns:
        pair_id, label ("" where the answer does not parse), parse_kind, completion, tokens; in order.
    """
    rows = [encode(tokenizer, *row) for row in zip(asked["prompt"], asked["picture"], strict=True)]
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
    written: dict[int, tuple[str, str, str, int]] = {}
    for start in range(0, len(order), batch_completions):
        places = order[start : start + batch_completions]
        batch = collate([rows[place] for place in places], tokenizer.pad_token_id, side="left")
        batch = {name: value.to(model.device) for name, value in batch.items()}
        drawn = model.generate(
            inputs_embeds=embed(model, *(batch[name] for name in _EMBEDDED)),
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_completion_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            do_sample=False,
        )
        for place, tokens in zip(places, drawn.tolist(), strict=True):
            end = tokenizer.eos_token_id
            told = read_tokens(tokenizer, tokens[: tokens.index(end) + 1] if end in tokens else tokens)
            read = parse(told.text)
            written[place] = (read.label, read.kind, told.text, told.tokens)
    answers = [(pair_id, *written[place]) for place, pair_id in enumerate(asked["pair_id"])]
    return pd.DataFrame(answers, columns=["pair_id", "label", "parse_kind", "completion", "tokens"])


def nearest(soft: NDArray[Any], words: NDArray[Any]) -> NDArray[np.intp]:
    """Which of the words (n, width) each soft token (..., width) is nearest to, by cosine: (...)."""
    lengths = np.linalg.norm(words, axis=-1)  # 0 of a token that was never read, such as padding
    cosines = soft @ words.T / np.where(lengths > 0, lengths, np.inf)  # but for the soft token's length
    return np.asarray(cosines.argmax(axis=-1))


@torch.no_grad()
def nearest_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pictures: Sequence[bytes]
) -> list[list[str]]:
    """The word of the model that is nearest to each soft token of each picture."""
    words = model.get_input_embeddings().weight
    shown = torch.from_numpy(np.stack([pixels(picture) for picture in pictures])).to(words)
    soft, known = (t.float().cpu().numpy() for t in (model.get_submodule("eye")(shown / 255), words))
    return [[tokenizer.decode(token).strip() for token in row] for row in nearest(soft, known)]
