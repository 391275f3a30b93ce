"""``lore-nano``: a laptop-sized language model of Qwen2 architecture, pretrained on the bundled worlds.

Its corpus is generated on the fly, document ``i`` from the seed and ``i`` alone, so a killed pretraining
resumes exactly. Five kinds of document (answers carry the loss; item texts carry it everywhere):

* ``compare``: lists of how an attribute relates to the one asked for ("color navy: azure sibling");
* ``read``: a query and an item, answered by what is asked and what is there, without a verdict;
* ``fit``: a query and an item, answered in ONE step by the overall fit ("fit near") and, in half of them, by
  dimension as an afterthought. Some carry the relation right behind each demanded attribute of the prompt;
  the course withdraws these relations step by step, so that the model forms them silently, after Deng et al.
  2024, "From Explicit CoT to Implicit CoT: Learning to Internalize CoT Step by Step" (arXiv 2405.14838);
* ``grade``: one comparison answered by a bracketed label, which teaches the label tokens but not the task;
* ``text``: queries with item texts, as plain language modelling.

Like a model that has read texts from everywhere, the base has everyday sense: it knows that azure and navy
are blues and that 42 is over 40. It does not know what its tuning has to teach: no document holds slang, a
selling point that explains it, a verdict by an industry rule (all are those of everyday sense), a chain of
thought, or a query whose meaning falls into the dev or test split.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from lore_lib.artifacts import atomic_write, write_jsonl
from lore_lib.completion import render, render_answer
from lore_lib.features.prompts import BUDGETS, item_sections, render_prompt
from lore_lib.features.template import load_template
from lore_lib.rng import derive_seed, generator
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.kinds import NOT_STATED
from lore_lib.vertical.rules import Judgement, judge, verdict
from lore_lib.vertical.schema import DIMENSIONS, WORDS, Verdict
from lore_lib.vertical.world import Item, Query, World, item_texts, seen_on_picture

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_POSITIONS = 512


@dataclass(frozen=True)
class Lesson:
    """One stretch of the corpus.

    Attributes:
        until: the document before which it ends.
        shares: of the kinds compare, read, fit, grade and text.
        shown: share of ``fit`` documents that show all, half and none of the inline relations.
        one_demand: share of queries with a single demand beside the category.
        same_category: share of items of the category asked for, so that the other demands decide.
    """

    until: int
    shares: tuple[float, float, float, float, float]
    shown: tuple[float, float, float]
    one_demand: float
    same_category: float


COURSE: tuple[Lesson, ...] = (
    Lesson(40_000, (0.40, 0.25, 0.27, 0.03, 0.05), (0.8, 0.2, 0.0), 0.5, 0.6),
    Lesson(112_000, (0.20, 0.30, 0.45, 0.02, 0.03), (0.4, 0.4, 0.2), 0.2, 0.7),
    Lesson(184_000, (0.12, 0.25, 0.59, 0.02, 0.02), (0.1, 0.4, 0.5), 0.1, 0.7),
    Lesson(224_000, (0.08, 0.25, 0.63, 0.02, 0.02), (0.05, 0.15, 0.8), 0.1, 0.7),
)
"""The lessons in order; what lies beyond the last belongs to it."""

NUMBERS = 0.5
"""Share of comparisons about prices and materials, whose digits are the hardest to learn."""

SORTED_BATCHES = 8
"""Batches that are cut, sorted by length, from one run of documents: less padding, same documents."""


class Corpus(Dataset[dict[str, list[int]]]):
    """Map-style, endless in spirit: document ``i`` is a function of (seed, i).

    Args:
        verticals: the verticals to write about, in equal shares.
        documents: how many there are.
        seed: root seed.
        tokenizer: None yields texts only through :meth:`segments`.
    """

    def __init__(
        self,
        verticals: Sequence[Vertical],
        documents: int,
        seed: int,
        tokenizer: Qwen2Tokenizer | None = None,
    ) -> None:
        self.documents, self.seed, self.tokenizer = documents, seed, tokenizer
        self._writers = [_Writer(World(vertical)) for vertical in verticals]

    def __len__(self) -> int:
        return self.documents

    def segments(self, index: int) -> list[tuple[str, bool]]:
        """Document ``index`` as pieces of text and whether each carries the loss."""
        rng = generator(self.seed, "pretrain", index)
        lesson = next((part for part in COURSE if index < part.until), COURSE[-1])
        writer = self._writers[int(rng.integers(len(self._writers)))]
        kind = str(rng.choice(["compare", "read", "fit", "grade", "text"], p=lesson.shares))
        return writer.write(kind, lesson, rng)

    def held_out(self, count: int) -> list[tuple[str, str]]:
        """``fit`` documents over queries of the dev split, drawn for all levels alike: (context, word)."""
        rng = generator(self.seed, "pretrain", "held-out")
        return [self._writers[n % len(self._writers)].held_out(1 + n % 4, rng) for n in range(count)]

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if self.tokenizer is None:
            raise ValueError("this corpus has no tokenizer; give one to get token ids")
        ids: list[int] = []
        labels: list[int] = []
        for text, taught in self.segments(index):
            piece = self.tokenizer(text)["input_ids"]
            ids += piece
            labels += piece if taught else [-100] * len(piece)
        return {"input_ids": ids[:MAX_POSITIONS], "labels": labels[:MAX_POSITIONS]}


class _Writer:
    """Writes documents about one vertical."""

    def __init__(self, world: World) -> None:
        self._world, self._vertical = world, world.vertical

    def write(self, kind: str, lesson: Lesson, rng: np.random.Generator) -> list[tuple[str, bool]]:
        """One document: pieces of text and whether each carries the loss."""
        if kind == "compare":
            return [("\n".join(self._comparison(rng) for _ in range(10)) + SPECIAL[0], True)]
        if kind == "grade":
            step = self._one_comparison(rng)
            context = f"compare: {step.dimension} {step.demanded} / {step.found}"
            label = render_answer(f"L{step.level}", step.dimension if step.level == 2 else "")
            return [(_turns(context), False), (f"{label}<|im_end|>", True)]
        shown = (1.0, 0.5, 0.0)[int(rng.choice(3, p=lesson.shown))] if kind == "fit" else 0.0
        extra = len(self._world.spec.asks) if shown and rng.random() < 0.4 else None
        query = self._query(rng, "train", 1 if rng.random() < lesson.one_demand else extra)
        item = self._item(query, rng, same_category=bool(rng.random() < lesson.same_category))
        if kind == "text":
            return [(f"{render_prompt(query.text, self._sections(item), 'full')}{SPECIAL[0]}", True)]
        return self._read(query, item) if kind == "read" else self._fit(query, item, rng, shown)

    def held_out(self, level: int, rng: np.random.Generator) -> tuple[str, str]:
        """A ``fit`` document over a query of the dev split: (context, word)."""
        query = self._query(rng, "dev", None)
        pieces = self._fit(query, self._world.draw_item(query, level, rng), rng, 0.0)
        word = re.split(r"\W", pieces[-1][0].removeprefix("fit "))[0]
        return "".join(text for text, _ in pieces[:-1]), word

    def _query(self, rng: np.random.Generator, split: str, extra: int | None) -> Query:
        while True:
            query = self._world.draw_query(rng, extra, slang=False)
            if query.split == split:
                return query

    def _item(self, query: Query, rng: np.random.Generator, same_category: bool) -> Item:
        while True:
            item = self._world.draw_item(query, int(rng.integers(1, 5)), rng)
            if not same_category or item.truth["category"] == query.demands[0].value:
                return item

    def _sections(self, item: Item) -> dict[str, tuple[str, ...]]:
        """The prompt sections of an item: a faultless caption, and no selling points, which explain slang."""
        silent = dataclasses.replace(item, selling_points="")
        return item_sections(item_texts(silent), seen_on_picture(self._vertical, item.truth))

    def _judge(self, query: Query, known: Mapping[str, str]) -> Judgement:
        return judge(self._vertical, query.demands, known, industry_rules=False)

    def _read(self, query: Query, item: Item) -> list[tuple[str, bool]]:
        """The prompt, answered by what the query asks and what the item has of it."""
        asks = ", ".join(f"{d.dimension} {'not ' * d.negated}{d.value}" for d in query.demands)
        path = self._judge(query, item.truth).path
        has = "\n".join(f"{step.dimension} {step.demanded}: {step.found}" for step in path)
        prompt = render_prompt(query.text, self._sections(item))
        return [(_turns(prompt), False), (f"asks {asks}\n{has}<|im_end|>", True)]

    def _fit(
        self, query: Query, item: Item, rng: np.random.Generator, shown: float
    ) -> list[tuple[str, bool]]:
        """The prompt, with each inline relation shown by that chance, and the one-step answer."""
        budget = "mid" if rng.random() < 0.9 else str(rng.choice(list(BUDGETS)))
        known = item.truth
        if budget == "short":
            known = {k: v for k, v in item.truth.items() if k in ("category", "price") or v in item.title}
        result = self._judge(query, known)
        values = {"query": (query.text,)} | self._sections(item)
        words = {step.dimension: f" {_relation(step)}" for step in result.path if rng.random() < shown}
        pieces: list[tuple[str, bool]] = [("<|im_start|>user", False)]
        for name in (name for name in BUDGETS[budget] if name in values):
            for at, (dimension, part) in enumerate(self._attributes(name, values[name])):
                pieces.append((f"{', ' if at else f'{chr(10)}{name}: '}{part}", False))
                if dimension in words and not (name == "cpv" and dimension in self._vertical.pictured):
                    pieces.append((words[dimension], True))
        pieces.append(("<|im_end|>\n<|im_start|>assistant\n", False))
        why = ": " + ", ".join(f"{step.dimension} {_relation(step)}" for step in result.path)
        answer = f"fit {WORDS[int(result.label[1])]}{why if rng.random() < 0.5 else ''}"
        return [*pieces, (f"{answer}<|im_end|>", True)]

    def _attributes(self, section: str, values: tuple[str, ...]) -> list[tuple[str, str]]:
        """The parts of a section behind which a relation may stand, with the dimension each one shows."""
        if section == "cpv":
            return [(value.partition(" ")[0], value) for value in values]
        if section == "picture":
            return list(zip(self._vertical.pictured, values, strict=True))
        shows = {"title": "category"}.get(section, section)
        return [(shows, load_template("nano").sections[section].join.join(values))]

    def _one_comparison(self, rng: np.random.Generator) -> Verdict:
        if rng.random() < NUMBERS:
            demand = self._world.draw_demands(str(rng.choice(["price", "material"])), rng, slang=False)[0]
        else:
            query = self._world.draw_query(rng, slang=False)
            demand = query.demands[int(rng.integers(len(query.demands)))]
        levels = [level for level in (1, 2, 3, 4) if self._world.options((demand,), level)]
        options = self._world.options((demand,), int(rng.choice(levels)))
        have = options[int(rng.integers(len(options)))]
        known = {key: value for key, value in have.items() if value != NOT_STATED}
        return verdict(self._vertical, demand, known, industry_rules=False)

    def _comparison(self, rng: np.random.Generator) -> str:
        step = self._one_comparison(rng)
        return f"{step.dimension} {step.demanded}: {step.found} {_relation(step)}"


def _relation(step: Verdict) -> str:
    return step.relation.replace("_", " ")


def _turns(user: str) -> str:
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer (any text encodes, no unknown token) with a chat template.

    It splits text as Qwen2 does (each digit alone), because transformers loads every model of type
    ``qwen2`` with ``Qwen2Tokenizer`` whatever class was saved.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    added = [*SPECIAL, "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(added), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(texts, trainer)
    learned = json.loads(core.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"], merges=[tuple(merge) for merge in learned["merges"]], eos_token="<|im_end|>",
        pad_token="<|endoftext|>", unk_token="<|endoftext|>", model_max_length=MAX_POSITIONS,
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: Qwen2Tokenizer, hidden: int, layers: int, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of ``layers`` x ``hidden`` with head size 32 and tied embeddings."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        rope_theta=10_000.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def collate(rows: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded batch: ``input_ids``, ``labels`` and ``attention_mask`` of shape (rows, longest)."""
    longest = max(len(row["input_ids"]) for row in rows)
    width = -(-longest // 8) * 8  # few distinct shapes: CPU kernels are compiled once for each
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for r, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[r, :size], labels[r, :size] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        mask[r, :size] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def sorted_batches(rows: list[dict[str, list[int]]], size: int, pad: int) -> list[dict[str, torch.Tensor]]:
    """Cut rows into batches of ``size`` of like length, in an order that does not rise with length."""
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    batches = [collate(rows[start : start + size], pad) for start in range(0, len(rows), size)]
    return batches[::2] + batches[1::2]


def vocabulary_texts(corpus: Corpus, count: int) -> Iterator[str]:
    """What the tokenizer learns from: a spread of the corpus, and completions for the words they use."""
    for index in range(0, len(corpus), max(1, len(corpus) // count)):
        yield "".join(text for text, _ in corpus.segments(index))
        title = list(DIMENSIONS)[index % len(DIMENSIONS)]
        yield render([f"need: a = b, {title} c", f"{title} a: b match"], "L2", title)


@torch.no_grad()
def fit_accuracy(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, rows: list[tuple[str, str]]) -> float:
    """Share of held-out ``fit`` documents whose overall word is the likeliest of the four (chance: 0.25)."""
    words = [tokenizer(f" {word}")["input_ids"][0] for word in WORDS.values()]
    model.eval()
    right = 0
    for start in range(0, len(rows), 64):
        chunk = rows[start : start + 64]
        ids = [tokenizer(context + "fit")["input_ids"] for context, _ in chunk]
        batch = collate([{"input_ids": row, "labels": row} for row in ids], tokenizer.pad_token_id)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        last = logits[torch.arange(len(ids)), batch["attention_mask"].sum(1) - 1][:, words].argmax(1)
        gold = [list(WORDS.values()).index(word) for _, word in chunk]
        right += int((last == torch.tensor(gold)).sum())
    model.train()
    return right / len(rows)


def pretrain(
    verticals: Sequence[Vertical], folder: Path, documents: int, seed: int, hidden: int = 192,
    layers: int = 5, vocabulary: int = 1536, batch_documents: int = 32, learning_rate: float = 3e-3,
    bf16: bool = False, checkpoint_steps: int = 320,
) -> dict[str, float]:  # fmt: skip
    """Pretrain ``lore-nano``; save it as bfloat16 safetensors with tokenizer and ``history.jsonl``.

    Optimiser: Muon on the matrices, AdamW on embeddings and norms; warm-up, plateau, linear decay over the
    last 30 %. Resumes from ``folder/checkpoint.pt``.

    Args:
        verticals: the verticals to write about, in equal shares.
        folder: where the model goes.
        documents: how many documents this run reads, once each.
        seed: root seed of corpus and initialisation.
        hidden: width; layers: depth; vocabulary: tokenizer size.
        batch_documents: documents per update.
        learning_rate: peak, for both optimisers.
        bf16: autocast matrix products to bfloat16; only faster on CPUs with AMX (Sapphire Rapids and later).
        checkpoint_steps: updates between checkpoints, which also measure held-out one-step accuracy.

    Returns:
        The last history row.
    """
    corpus = Corpus(verticals, documents, seed)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        whole_course = Corpus(verticals, COURSE[-1].until, seed)  # however far this run goes
        train_tokenizer(vocabulary_texts(whole_course, 4000), vocabulary).save_pretrained(folder)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    corpus.tokenizer = tokenizer
    model = new_model(tokenizer, hidden, layers, derive_seed(seed, "nano-init"))
    model.set_attn_implementation("eager" if bf16 else "sdpa")  # sdpa's bfloat16 backward is slow on CPU
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    done, history = 0, []
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        done, history = state["done"], state["history"]
    steps, held_out = documents // batch_documents, corpus.held_out(512)
    # checkpoints fall on whole runs of sorted batches, so that a resumed run sees the same batches
    loader = DataLoader(
        Subset(corpus, range(done * batch_documents, steps * batch_documents)),
        batch_size=SORTED_BATCHES * batch_documents, num_workers=1, prefetch_factor=2,
        collate_fn=functools.partial(sorted_batches, size=batch_documents, pad=tokenizer.pad_token_id),
    )  # fmt: skip
    losses: list[float] = []
    started = time.perf_counter() - (history[-1]["seconds"] if history else 0.0)
    for step, batch in enumerate(itertools.chain.from_iterable(loader), start=done + 1):
        rate = learning_rate * min(1.0, step / 100, (steps - step + 1) / (0.3 * steps))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(float(loss.detach()))
        if step % checkpoint_steps == 0 or step == steps:
            row: dict[str, float] = {
                "step": step,
                "documents": step * batch_documents,
                "loss": sum(losses) / len(losses),
                "fit_accuracy": fit_accuracy(model, tokenizer, held_out),
                "seconds": time.perf_counter() - started,
            }
            losses.clear()
            history.append(row)
            saved = {"model": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}
            saved |= {"done": step, "history": history}
            atomic_write(checkpoint, functools.partial(torch.save, saved))
            write_jsonl(folder / "history.jsonl", history)
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(folder)
    checkpoint.unlink()
    return dict(history[-1])
