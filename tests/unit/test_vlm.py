"""A vision-language model that is really loaded, processed and sampled: LLaVA's code, tiny and random."""

import base64
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
)

from lore_lib.cot.chat import Draw, Request, VlmChat
from lore_lib.errors import EngineError

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("tiny-vlm")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, **ends,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28,
        patch_size=14, projection_dim=32,
    )  # fmt: skip
    torch.manual_seed(17)
    net = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    net.generation_config.update(**ends)
    net.save_pretrained(folder)
    eyes = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        eyes, tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def asked(color: str, text: str, sample: int = 0) -> Request:
    out = io.BytesIO()
    Image.new("RGB", (40, 60), color).save(out, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    parts = ({"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text})
    return Request(({"role": "user", "content": parts},), {}, sample)


def test_a_batch_of_pictures_is_answered_as_each_alone_would_be(model: Path) -> None:
    chat = VlmChat(str(model), Draw(0.0, 6, 17), device="cpu")
    requests = [asked("red", "What is its color?"), asked("blue", "And of this one, which is another item?")]
    told = {}
    replies = chat.complete(requests, told.__setitem__)
    assert [told[0], told[1]] == replies
    assert replies == [chat.complete([request])[0] for request in requests]
    for reply in replies:
        assert reply.prompt_tokens > 4  # four patches and the text
        assert 0 < reply.completion_tokens <= 6
        assert reply.failure in ("", "truncated", "empty")
    assert replies[0].prompt_tokens < replies[1].prompt_tokens


def test_the_picture_decides_what_the_model_computes(model: Path) -> None:
    chat = VlmChat(str(model), Draw(0.0, 1, 17), device="cpu")
    seen = [
        chat._processor.apply_chat_template(
            [[{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (40, 60), color)}]}]],
            tokenize=True, return_dict=True, return_tensors="pt",
        )
        for color in ("red", "blue")
    ]  # fmt: skip
    assert torch.equal(seen[0]["input_ids"], seen[1]["input_ids"])
    first, second = (chat._net(**one).logits for one in seen)
    assert not torch.allclose(first, second)


def test_samples_differ_by_their_number_and_come_back_the_same(model: Path) -> None:
    chat = VlmChat(str(model), Draw(1.0, 12, 17), device="cpu")
    drawn = [chat.complete([asked("red", "What?", sample)])[0] for sample in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize("name", ["no-such-folder", "lore-nano-text-only"])
def test_what_is_no_image_text_model_is_refused(name: str, tiny_model: Path) -> None:
    where = str(tiny_model) if name == "lore-nano-text-only" else name
    with pytest.raises(EngineError, match="no image-text model at"):
        VlmChat(where, Draw())


def test_pickled_weights_are_refused(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EngineError, match="weights in safetensors"):
        VlmChat(str(tmp_path), Draw())
