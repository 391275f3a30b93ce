"""A GGUF file as a model folder: transformers reads one slowly and cannot save what it read."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from lore_lib.errors import ArtifactError, EngineError
from lore_lib.sampling.engine import no_weight_bars

MAGIC = b"GGUF"


def convert_gguf(file: Path, out: Path) -> Path:
    """Write the weights (safetensors, float32), configuration and tokenizer of a GGUF file; done once.

    The weights are those of the file, rounded as it has them. Reading it takes 20 s for 135M parameters;
    the folder opens in a second and can be tuned and saved like any other.

    Args:
        file: the model.
        out: folder to write; it must not exist yet.

    Returns:
        ``out``.

    Raises:
        ArtifactError: no such file, none of that kind, or the folder is there.
        EngineError: transformers cannot read it, or it has no chat template.
    """
    if not file.is_file():
        raise ArtifactError(f"no file {file}; give a .gguf file")
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ArtifactError(f"{file} is no GGUF file: it does not begin with {MAGIC.decode()!r}")
    if out.exists():
        raise ArtifactError(f"{out} is there already; take another folder, or use it as it is")
    source = {"pretrained_model_name_or_path": str(file.resolve().parent), "gguf_file": file.name}
    try:
        with no_weight_bars():
            tokenizer = AutoTokenizer.from_pretrained(**source)
            read = AutoModelForCausalLM.from_pretrained(**source)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError(f"transformers cannot read {file}: {error}") from error
    if tokenizer.chat_template is None:
        raise EngineError(f"{file} holds no chat template; take an instruction-tuned model")
    config = read.config
    del config.quantization_config  # with it transformers refuses to save
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with no_weight_bars():
        model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.replace(out)
    return out
