"""A model without training that says what it was told to:
each token of a script is followed by the next.

`make(folder, script, template)` leaves a complete model folder.
Its prompts must end with `<|assistant|>`.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from unit.runtime import tiny_model

START = "<|assistant|>"
END = tiny_model.EOS


def make(folder: Path, script: Sequence[str], template: str, special: Sequence[str] = ()) -> Path:
    """`script`: pieces, no two alike, each of which becomes one token;
    those in `special` a special one."""
    import torch
    from tokenizers import AddedToken, Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_model.make_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for piece in script:
        if piece in special:
            tokenizer.add_special_tokens([AddedToken(piece, special=True)])
        else:
            tokenizer.add_tokens([AddedToken(piece, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    end = tokenizer.token_to_id(END)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size + size % 2, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=512, bos_token_id=None, eos_token_id=end,
        pad_token_id=end, tie_word_embeddings=False, dtype="float32",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight[torch.arange(size), torch.arange(size)] = 1.0
        says = [START, *script, END]
        for before, after in pairwise(says):
            model.lm_head.weight[tokenizer.token_to_id(after), tokenizer.token_to_id(before)] = 1.0
    model.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
