"""``lore-nano``: a laptop-sized language model of Qwen2 architecture, pretrained on the bundled world.

Its corpus is generated on the fly, document ``i`` from the seed and ``i`` alone, so a killed pretraining
resumes exactly. Six kinds of document (answers carry the loss; item texts carry it everywhere):

* ``compare``: lists of attribute comparisons ("color navy azure: near");
* ``fit``: a query and an item in the prompt format, answered in ONE step by the overall fit and then, as an
  afterthought, by dimension ("fit near: category match, color near"): several comparisons combined at once;
* ``grade``: one comparison answered by a bracketed label, which teaches the label tokens but not the task;
* ``text``: item texts and the glossary of slang, as plain language modelling;
* ``inline``: the prompt with a verdict right behind each demanded attribute;
* ``read``: a query and an item, answered by what is asked and what is there, without a verdict.

No document holds a query whose meaning falls into the dev or test split, nor a chain of thought.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from lore_lib.artifacts import atomic_write, write_jsonl
from lore_lib.completion import render
from lore_lib.features.prompts import BUDGETS, render_prompt
from lore_lib.rng import derive_seed, generator
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.rules import judge, verdict
from lore_lib.vertical.schema import DIMENSIONS, WORDS, Demand
from lore_lib.vertical.world import EXTRA_DIMENSIONS, Item, Query, World

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_POSITIONS = 512
EARLY_DOCUMENTS = 56_000
"""Over the first so many documents, comparisons and one-demand queries give way to the full mixture."""

FOCUS_FROM, COMBINE_FROM, DENSE_FROM, ANSWER_FROM, READ_FROM = 81_920, 122_880, 143_360, 192_000, 220_800
"""Where the lessons of the corpus begin: numbers; items of the category asked for, so that the other
demands decide; a verdict behind each of seven demanded attributes; one-step answers; reading out what is
asked and what is there.
``LAB_NOTES.md`` tells what each was to cure."""

SORTED_BATCHES = 8
"""Batches that are cut, sorted by length, from one run of documents: less padding, same documents."""


def item_prompt_sections(item: Item, with_picture: bool = True) -> dict[str, str]:
    """The prompt sections of a world item, as :func:`lore_lib.features.prompts.item_sections` writes them."""
    sections = {
        "title": item.title,
        "cpv": ", ".join(f"{name} {value}" for name, value in item.cpv.items()),
        "sku": item.skus,
        "shop": item.shop,
        "price": f"{float(item.truth['price']):g}",
        "selling_points": item.selling_points,
    }
    sections = {name: text for name, text in sections.items() if text}
    return sections | ({"picture": item.truth["color"]} if with_picture else {})


class Corpus(Dataset[dict[str, list[int]]]):
    """Map-style, endless in spirit: document ``i`` is a function of (seed, i).

    Args:
        vertical: the vertical to write about.
        documents: how many there are.
        seed: root seed.
        tokenizer: None yields texts only through :meth:`segments`.
    """

    def __init__(
        self, vertical: Vertical, documents: int, seed: int, tokenizer: Qwen2Tokenizer | None = None
    ) -> None:
        self.vertical, self.documents, self.seed, self.tokenizer = vertical, documents, seed, tokenizer
        self.world = World(vertical)

    def __len__(self) -> int:
        return self.documents

    def segments(self, index: int) -> list[tuple[str, bool]]:
        """Document ``index`` as pieces of text and whether each carries the loss."""
        rng = generator(self.seed, "pretrain", index)
        early = max(0.0, 1.0 - index / EARLY_DOCUMENTS)
        kind = str(rng.choice(["compare", "grade", "text", "inline", "fit", "read"], p=_mixture(index)))
        if kind == "compare":
            lines = [self._comparison(rng, index >= FOCUS_FROM) for _ in range(10)]
            return [("\n".join(lines) + SPECIAL[0], True)]
        if kind == "grade":
            demand, have = self._one_comparison(rng)
            step = verdict(self.vertical, demand, have)
            context = f"compare: {demand.dimension} {step.demanded} / {step.found}"
            return [(_turns(context), False), (f"[L{step.level}]<|im_end|>", True)]
        if kind == "inline":
            query = self._train_query(rng, early, len(EXTRA_DIMENSIONS) if index >= DENSE_FROM else None)
            return self._inline(query, self._any_item(query, rng))
        combine = index >= COMBINE_FROM and rng.random() < 0.8
        query = self._train_query(rng, 0.5 if combine else early)
        item = self._same_category_item(query, rng) if combine else self._any_item(query, rng)
        if kind == "text":
            entry = str(rng.choice(list(self.vertical.lexicon)))
            meaning = " ".join(f"{d} {v}" for d, v in self.vertical.lexicon[entry].means.items())
            prompt = render_prompt(query.text, item_prompt_sections(item), "full")
            return [(f"{entry} means {meaning}\n{prompt}{SPECIAL[0]}", True)]
        if kind == "read":
            return self._read(query, item)
        context, answer = self._fit(query, item, rng)
        return [(context, False), (answer, True)]

    def _any_item(self, query: Query, rng: np.random.Generator) -> Item:
        return self.world.draw_item(query, int(rng.integers(1, 5)), rng)

    def _same_category_item(self, query: Query, rng: np.random.Generator) -> Item:
        """An item of the category asked for, so that the other demands decide."""
        wanted = query.demands[0].value
        while True:
            item = self.world.draw_item(query, int(rng.integers(2, 5)), rng)
            if item.truth["category"] == wanted:
                return item

    def _read(self, query: Query, item: Item) -> list[tuple[str, bool]]:
        """The prompt, answered by what the query asks and what the item has, without a verdict."""
        asks = ", ".join(f"{d.dimension} {'not ' * d.negated}{d.value}" for d in query.demands)
        has = [f"category {item.truth['category']}", *(f"{name} {value}" for name, value in item.cpv.items())]
        has += [f"price {item.truth['price']}", f"picture {item.truth['color']}"]
        prompt = render_prompt(query.text, item_prompt_sections(item))
        return [(_turns(prompt), False), (f"asks {asks}. has {', '.join(has)}<|im_end|>", True)]

    def _inline(self, query: Query, item: Item) -> list[tuple[str, bool]]:
        """The prompt with a verdict right behind each demanded attribute; only the verdicts are taught."""
        path = judge(self.vertical, query.demands, item.truth).path
        words = {step.dimension: f" {step.word}" for step in path}
        opening = f"<|im_start|>user\nquery: {query.text}\ntitle: {item.title}"
        pieces = [(opening, False), (words["category"], True)]
        for at, (name, value) in enumerate(item.cpv.items()):
            pieces.append((f"{', ' if at else chr(10) + 'cpv: '}{name} {value}", False))
            if name in words and name != "color":
                pieces.append((words[name], True))
        for name, value in (("price", item.truth["price"]), ("picture", item.truth["color"])):
            before = f"\nsku: {item.skus}\n" if name == "price" else "\n"
            pieces.append((f"{before}{name}: {value}", False))
            seen = "color" if name == "picture" else name
            if seen in words:
                pieces.append((words[seen], True))
        return pieces

    def held_out(self, count: int) -> list[tuple[str, str]]:
        """``fit`` documents over queries of the dev split, balanced over the levels: (context, answer)."""
        rng = generator(self.seed, "pretrain", "held-out")
        rows: list[tuple[str, str]] = []
        while len(rows) < count:
            query = self.world.draw_query(rng)
            if query.split == "dev":
                rows.append(self._fit(query, self.world.draw_item(query, 1 + len(rows) % 4, rng), rng))
        return rows

    def _train_query(self, rng: np.random.Generator, early: float, extra: int | None = None) -> Query:
        extra = 1 if rng.random() < early else extra
        while True:
            query = self.world.draw_query(rng, extra)
            if query.split == "train":
                return query

    def _fit(self, query: Query, item: Item, rng: np.random.Generator) -> tuple[str, str]:
        budget = "mid" if rng.random() < 0.9 else str(rng.choice(list(BUDGETS)))
        sections = item_prompt_sections(item)
        known = item.truth
        if budget == "short":
            known = {k: v for k, v in item.truth.items() if k in ("category", "price") or v in item.title}
        result = judge(self.vertical, query.demands, known)
        level = int(result.label[1])
        why = ", ".join(f"{step.dimension} {step.word}" for step in result.path)
        return _turns(render_prompt(query.text, sections, budget)), f"fit {WORDS[level]}: {why}<|im_end|>"

    def _one_comparison(
        self, rng: np.random.Generator, numbers: bool = False
    ) -> tuple[Demand, dict[str, str]]:
        dimension = str(rng.choice(["price", "material"])) if numbers else ""
        query = self.world.draw_query(rng)
        demand = (
            self.world.draw_demand(dimension, rng)
            if dimension
            else query.demands[int(rng.integers(len(query.demands)))]
        )
        levels = [level for level in (1, 2, 3, 4) if self.world.options(demand, level)]
        options = self.world.options(demand, int(rng.choice(levels)))
        have = options[int(rng.integers(len(options)))]
        return demand, {key: value for key, value in have.items() if value != "none"}

    def _comparison(self, rng: np.random.Generator, focus: bool) -> str:
        demand, have = self._one_comparison(rng, focus and rng.random() < 0.8)
        step = verdict(self.vertical, demand, have)
        return f"{demand.dimension} {demand.surface}, {step.found}: {step.word}"

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


def _mixture(index: int) -> list[float]:
    """Shares of compare, grade, text, inline, fit and read: the corpus is a course."""
    if index >= READ_FROM:
        return [0.05, 0.02, 0.01, 0.07, 0.30, 0.55]
    if index >= ANSWER_FROM:
        return [0.04, 0.02, 0.02, 0.17, 0.75, 0.0]
    if index >= DENSE_FROM:
        return [0.05, 0.02, 0.03, 0.50, 0.40, 0.0]
    if index >= COMBINE_FROM:
        return [0.08, 0.03, 0.04, 0.30, 0.55, 0.0]
    early = max(0.0, 1.0 - index / EARLY_DOCUMENTS)
    compare = 0.25 if index >= FOCUS_FROM else 0.08 + 0.52 * early
    return [compare, 0.03, 0.06, 0.0, 0.91 - compare, 0.0]


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
        gold = [list(WORDS.values()).index(answer.split()[1].rstrip(":")) for _, answer in chunk]
        right += int((last == torch.tensor(gold)).sum())
    model.train()
    return right / len(rows)


def pretrain(
    vertical: Vertical, folder: Path, documents: int, seed: int, hidden: int = 192, layers: int = 5,
    vocabulary: int = 1024, batch_documents: int = 32, learning_rate: float = 3e-3, bf16: bool = False,
    checkpoint_steps: int = 320, continue_from: Path | None = None, first_document: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Pretrain ``lore-nano``; save it as bfloat16 safetensors with tokenizer and ``history.jsonl``.

    Optimiser: Muon on the matrices, AdamW on embeddings and norms; warm-up, plateau, linear decay over the
    last 30 %. Resumes from ``folder/checkpoint.pt``.

    Args:
        vertical: the vertical to write about.
        folder: where the model goes.
        documents: how many documents this run reads, once each.
        seed: root seed of corpus and initialisation.
        hidden: width; layers: depth; vocabulary: tokenizer size.
        batch_documents: documents per update.
        learning_rate: peak, for both optimisers.
        bf16: autocast matrix products to bfloat16; only faster on CPUs with AMX (Sapphire Rapids and later).
        checkpoint_steps: updates between checkpoints, which also measure held-out one-step accuracy.
        continue_from: folder of an earlier pretraining whose weights this one starts from, with a fresh
            optimiser.
        first_document: where in the corpus this run begins.

    Returns:
        The last history row.
    """
    corpus = Corpus(vertical, first_document + documents, seed)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        made = (
            Qwen2Tokenizer.from_pretrained(continue_from)
            if continue_from
            else train_tokenizer(vocabulary_texts(corpus, 4000), vocabulary)
        )
        made.save_pretrained(folder)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    corpus.tokenizer = tokenizer
    model = (
        Qwen2ForCausalLM.from_pretrained(continue_from, dtype=torch.float32)
        if continue_from
        else new_model(tokenizer, hidden, layers, derive_seed(seed, "nano-init"))
    )
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
    first = first_document + done * batch_documents
    # checkpoints fall on whole runs of sorted batches, so that a resumed run sees the same batches
    loader = DataLoader(
        Subset(corpus, range(first, first_document + steps * batch_documents)),
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
                "documents": first_document + step * batch_documents,
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
