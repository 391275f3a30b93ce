"""A GGUF file becomes a folder that samples, tunes and saves like any other model."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter

from lore_lib.errors import ArtifactError, EngineError
from lore_lib.sampling.engine import HfEngine, Sampling, load_model, load_tokenizer
from lore_lib.training.convert import convert_gguf

HIDDEN, HEADS, KV, INNER, BLOCKS = 32, 4, 2, 64, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [*(chr(code) for code in range(33, 127)), "Ġ", "Ċ", "ab", *SPECIAL]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(path: Path, template: str | None) -> dict[str, torch.Tensor]:
    """A tiny Llama of random weights with a byte-level tokenizer; returns some of its weights."""
    writer, draw = GGUFWriter(path, "llama"), torch.Generator().manual_seed(3)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * (len(WORDS) - len(SPECIAL)) + [3] * len(SPECIAL))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(len(WORDS) - 2)
    writer.add_eos_token_id(len(WORDS) - 1)
    if template is not None:
        writer.add_chat_template(template)
    inner = {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
    keys = dict.fromkeys(("attn_k", "attn_v"), (HIDDEN * KV // HEADS, HIDDEN))
    square = dict.fromkeys(("attn_q", "attn_output"), (HIDDEN, HIDDEN))
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(WORDS), HIDDEN), "output_norm": (HIDDEN,)}
    for block in range(BLOCKS):
        norms = dict.fromkeys(("attn_norm", "ffn_norm"), (HIDDEN,))
        shapes |= {f"blk.{block}.{name}": shape for name, shape in (inner | keys | square | norms).items()}
    weights = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_gguf_file_becomes_a_folder_that_samples_and_saves(tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "tiny.gguf", TEMPLATE)
    folder = convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    assert not hasattr(model.config, "quantization_config")
    torch.testing.assert_close(model.model.embed_tokens.weight.data, written["token_embd"])
    torch.testing.assert_close(model.model.layers[1].mlp.down_proj.weight.data, written["blk.1.ffn_down"])
    sampling = Sampling(n=2, max_completion_tokens=5)
    ((one, two),) = HfEngine(model, tokenizer).generate(["navy dress"], sampling)
    assert one.tokens <= 5 >= two.tokens
    model.save_pretrained(tmp_path / "again")
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_converted_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(ArtifactError, match="no file"):
        convert_gguf(tmp_path / "absent.gguf", out)
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ArtifactError, match="no GGUF file: it does not begin with 'GGUF'"):
        convert_gguf(tmp_path / "text.gguf", out)
    write_gguf(tmp_path / "plain.gguf", None)
    with pytest.raises(EngineError, match="holds no chat template"):
        convert_gguf(tmp_path / "plain.gguf", out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(ArtifactError, match="is there already"):
        convert_gguf(tmp_path / "plain.gguf", out)
