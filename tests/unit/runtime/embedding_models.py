"""Random encoders and decoders with the files of sentence-transformers beside them, written as that
library writes them."""

import json
from pathlib import Path
from typing import Any

from unit.runtime import tiny_model

VOCABULARY = 260
PAD = 256
BEGIN = 257
END = 258
SHAPE: Any = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 130, "pad_token_id": PAD,
}  # fmt: skip
KIND = "sentence_transformers.models"
TEXTS = (
    "short", "a text of some length, with words", "Grüße, 世界!", "x" * 90,
    "the same again and again and again", "UPPER and lower",
)  # fmt: skip


def bert(folder: Path, **options: Any) -> Path:
    return _saved(folder, "BertConfig", {**SHAPE, **options})


def roberta(folder: Path, **options: Any) -> Path:
    """Its positions begin behind its padding's id, so that is a small one."""
    return _saved(folder, "RobertaConfig", {**SHAPE, "pad_token_id": 1, **options})


def modern_bert(folder: Path, **options: Any) -> Path:
    own = {"global_attn_every_n_layers": 2, "local_attention": 16, "num_hidden_layers": 3}
    ends = {"cls_token_id": BEGIN, "sep_token_id": END, "bos_token_id": BEGIN, "eos_token_id": END}
    return _saved(folder, "ModernBertConfig", {**SHAPE, **own, **ends, **options})


def qwen3(folder: Path, **options: Any) -> Path:
    """A decoder, as Qwen3-Embedding is: saved as a causal model."""
    own = {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "eos_token_id": END,
        "tie_word_embeddings": True,
    }
    return _saved(folder, "Qwen3Config", {**SHAPE, **own, **options}, causal=True)


def describe(
    folder: Path,
    *modules: tuple[str, dict[str, Any]],
    max_seq_length: int | None = None,
    do_lower_case: bool = False,
    **said: Any,
) -> Path:
    """Write modules.json and what belongs to it: (kind, settings) of each module behind the model.
    `said` is for config_sentence_transformers.json."""
    named = [
        ("", "Transformer"),
        *((f"{n}_{kind}", kind) for n, (kind, _) in enumerate(modules, 1)),
    ]
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"{KIND}.{kind}"}
        for number, (path, kind) in enumerate(named)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    for (path, _), (_, settings) in zip(named[1:], modules, strict=True):
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(settings))
    length = {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case}
    (folder / "sentence_bert_config.json").write_text(json.dumps(length))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    return folder


def pooling(*modes: str, size: int = 32, **options: Any) -> tuple[str, dict[str, Any]]:
    """A pooling, with the fields that versions before 6 write."""
    flags = {f"pooling_mode_{mode}": True for mode in modes}
    return "Pooling", {"word_embedding_dimension": size, **flags, **options}


def dense(folder: Path, number: int, outputs: int) -> tuple[str, dict[str, Any]]:
    """A Dense module at place `number`, with its weights."""
    from safetensors.torch import save_file

    path = folder / f"{number}_Dense"
    path.mkdir()
    weights = {"linear.weight": numbers(outputs, 32) / 6, "linear.bias": numbers(outputs)}
    save_file(weights, path / "model.safetensors")
    activation = "torch.nn.modules.activation.Tanh"
    return "Dense", {
        "in_features": 32, "out_features": outputs, "bias": True, "activation_function": activation,
    }  # fmt: skip


def numbers(*shape: int) -> Any:
    """Random numbers that are the same with every version of torch and numpy: what they make of them
    is compared with a file."""
    import numpy as np
    import torch

    drawn = np.random.RandomState(sum(shape)).standard_normal(shape)
    return torch.from_numpy(drawn.astype(np.float32))


def _saved(folder: Path, config: str, options: dict[str, Any], *, causal: bool = False) -> Path:
    import torch
    import transformers

    _tokenizer(folder, options["pad_token_id"])
    settings = getattr(transformers, config)(**options)
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    model = kind.from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(numbers(*parameter.shape) / 5)
            else:
                parameter.copy_(torch.ones_like(parameter))
    model.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, pad: int) -> None:
    """Bytes, with marks around every text."""
    from tokenizers import Tokenizer, processors

    tiny_model.make_tokenizer(folder)
    (folder / "config.json").unlink()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = tokenizer.id_to_token(BEGIN)
    end = tokenizer.id_to_token(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, BEGIN), (end, END)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": tokenizer.id_to_token(pad), "cls_token": begin,
        "sep_token": end, "model_max_length": 512,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
