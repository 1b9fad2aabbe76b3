"""A random two-layer Llama with grouped-query attention and a byte-level tokenizer,
made in a second.

`make(folder)` leaves a complete model folder;
its answers are nonsense, but always the same nonsense.
"""

import json
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
EOS = "<|end|>"
MAX_POSITIONS = 512


def make(
    folder: Path,
    seed: int = 0,
    max_positions: int = MAX_POSITIONS,
    tied: bool = True,
    layers: int = 2,
) -> Path:
    """Write config, weights (safetensors) and tokenizer; another seed gives another model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder)
    eos = len(_byte_vocabulary())
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=eos + len(SPECIAL), hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=max_positions,
        bos_token_id=None, eos_token_id=eos, pad_token_id=eos, tie_word_embeddings=tied,
        initializer_range=0.2, dtype="float32",
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_tokenizer(folder: Path) -> Path:
    """Only the tokenizer's files and a config.json: enough for the codec, without torch."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": MAX_POSITIONS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    if not (folder / "config.json").exists():
        size = len(_byte_vocabulary())
        (folder / "config.json").write_text(
            json.dumps({"vocab_size": size + len(SPECIAL), "eos_token_id": size})
        )
    return folder


def _byte_vocabulary() -> dict[str, int]:
    from tokenizers import pre_tokenizers

    return {
        symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
