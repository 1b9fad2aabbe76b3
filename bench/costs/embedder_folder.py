"""A model for embeddings with random weights, of the size of well-known ones: it takes as long as a
trained one, and needs no download."""

import json
from pathlib import Path
from typing import Any

VOCABULARY = 30_522
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    },
    "base": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
}  # fmt: skip
"""As all-MiniLM-L6-v2, and as bge-base-en."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def make(folder: Path, model: str) -> Path:
    """The folder of a model of SHAPES, or `model` itself if it is a folder."""
    if model not in SHAPES:
        return Path(model).resolve()
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    settings = BertConfig(vocab_size=VOCABULARY, pad_token_id=0, **SHAPES[model])
    BertModel(settings, add_pooling_layer=False).save_pretrained(folder)
    _tokenizer(folder)
    kind = "sentence_transformers.models"
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"{kind}.{name}"}
        for number, (path, name) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    for path, _ in modules[1:]:
        (folder / path).mkdir()
    pooling = {
        "word_embedding_dimension": SHAPES[model]["hidden_size"],
        "pooling_mode_mean_tokens": True,
    }
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "2_Normalize/config.json").write_text("{}")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    return folder


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = [*SPECIAL, *(f"w{number}" for number in range(VOCABULARY - len(SPECIAL)))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
