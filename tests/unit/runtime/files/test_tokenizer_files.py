"""The tokenizer that is served is the one in the model's tokenizer.json;
what is missing is said by its name."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from llm_runtime.errors import Fatal, ModelCorrupt, ModelUnsupported
from llm_runtime.files.tokenizer_files import file_tokenizer, first_difference
from llm_runtime.text.codec import Codec, codec_from_folder, eos_token_ids
from unit.runtime import tiny_model

WORDS = [
    "<s>",
    "</s>",
    "<unk>",
    "▁the",
    "▁capital",
    "▁of",
    "▁France",
    "▁is",
    "▁Paris",
    "▁hello",
    "▁there",
    "<0x0A>",
]
LETTERS = [*"▁0123456789abcdefghijklmnopqrstuvwxyzFP"]


def sentencepiece(pre_tokenizer: Any = None, normalizer: Any = None) -> Tokenizer:
    """One in the manner of SentencePiece whose words are whole, made from letters by merges."""
    vocabulary = {word: number for number, word in enumerate(WORDS + LETTERS)}
    merges: list[tuple[str, str]] = []
    for word in WORDS[3:-1]:
        for end in range(2, len(word) + 1):
            vocabulary.setdefault(word[:end], len(vocabulary))
            if (pair := (word[: end - 1], word[end - 1])) not in merges:
                merges.append(pair)
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    made.add_special_tokens(["<s>", "</s>", "<unk>"])
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


def folder_of(tokenizer: Tokenizer, folder: Path, model_type: str, **settings: Any) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": size}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "bos_token": "<s>", **settings})
    )
    return folder


def served(folder: Path) -> Codec:
    """As the engine's process makes it."""
    load = pytest.importorskip("llm_runtime.loading.load")
    nothing = SimpleNamespace(to_dict=dict)
    size = SimpleNamespace(
        num_embeddings=json.loads((folder / "config.json").read_text()).get("vocab_size", 300)
    )
    model = SimpleNamespace(
        generation_config=nothing, config=nothing, get_input_embeddings=lambda: size
    )
    codec: Codec = load._codec(folder, "", model, *load.read_tokenizer(folder))
    return codec


METASPACE = pre_tokenizers.Metaspace()
LLAMA = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


@pytest.mark.parametrize(
    "model_type", ["qwen2", "qwen3_5", "qwen3", "llama", "mistral", "gemma3_text", "gpt2"]
)
@pytest.mark.parametrize("manner", ["metaspace", "digits", "llama 2"])
def test_what_the_engine_serves_is_the_file(tmp_path: Path, model_type: str, manner: str) -> None:
    made = {
        "metaspace": lambda: sentencepiece(METASPACE),
        "digits": lambda: sentencepiece(
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), METASPACE])
        ),
        "llama 2": lambda: sentencepiece(normalizer=LLAMA),
    }[manner]()
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False} if manner == "llama 2" else {}
    folder = folder_of(made, tmp_path / "m", model_type, **settings)
    engine = served(folder)
    offline = codec_from_folder(folder)
    for text in (
        "the capital of France is Paris",
        "hello there</s>\nhow are you",
        "a  1 2 12",
        "</s></s> the",
    ):
        ids = made.encode(text).ids
        assert (engine.encode(text), offline.encode(text)) == (ids, ids)
        assert engine.decode(ids) == offline.decode(ids) == made.decode(ids)
    assert (
        engine.decode(made.encode("the capital of France is Paris").ids)
        == "the capital of France is Paris"
    )


def test_where_transformers_reads_it_otherwise_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(
        sentencepiece(METASPACE), tmp_path / "m", "qwen2", tokenizer_class="Qwen2Tokenizer"
    )
    with caplog.at_level(logging.WARNING):
        served(folder)
    assert "tokenizes differently from this folder's tokenizer.json" in caplog.text


def test_a_class_that_nobody_knows_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    folder = folder_of(sentencepiece(METASPACE), tmp_path / "m", "llama", tokenizer_class="OddTokenizer", auto_map={
        "AutoTokenizer": ["odd.OddTokenizer", None]})  # fmt: skip
    assert (
        served(folder).encode("the capital") == sentencepiece(METASPACE).encode("the capital").ids
    )
    assert served(folder).eos_token_ids == {1}


def test_tokens_that_only_the_settings_name_are_added_with_their_ids(tmp_path: Path) -> None:
    made = sentencepiece(METASPACE)
    size = made.get_vocab_size()
    entry = {"content": "<|call|>", "special": True}
    folder = folder_of(
        made,
        tmp_path / "m",
        "llama",
        added_tokens_decoder={str(size): entry, "1": {"content": "</s>"}},
    )
    assert codec_from_folder(folder).encode("the<|call|>")[-1] == size
    assert codec_from_folder(folder).control_ids["<|call|>"] == size
    other = folder_of(made, tmp_path / "n", "llama", added_tokens_decoder={str(size + 5): entry})
    with pytest.raises(ModelUnsupported, match=r"<\|call\|>"):
        codec_from_folder(other)


def test_two_tokenizers_that_differ_are_told_apart() -> None:
    one = sentencepiece(METASPACE)
    other = sentencepiece()
    assert first_difference(one, sentencepiece(METASPACE)) == ""
    assert first_difference(one, other) != ""


def spoiled(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder


FAULTS: dict[str, tuple[dict[str, bytes | None], type[Fatal], str]] = {
    "only tokenizer.model": (
        {"tokenizer.json": None, "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"},
        ModelUnsupported, "only as tokenizer.model.*save_pretrained",
    ),
    "only spiece.model": (
        {"tokenizer.json": None, "spiece.model": b"\n\x0e\n\x05<unk>"}, ModelUnsupported, "only as spiece.model",
    ),
    "nothing": ({"tokenizer.json": None}, ModelUnsupported, "no tokenizer.json.*save_pretrained"),
    "half a file": ({"tokenizer.json": b'{"version": "1.0", "mod'}, ModelCorrupt, "tokenizer.json is not JSON"),
    "no text": ({"tokenizer.json": b"\x80\x81\x82"}, ModelCorrupt, "tokenizer.json is not JSON"),
    "a newer kind": (
        {"tokenizer.json": b'{"version": "9.0", "model": {"type": "Q"}}'}, ModelUnsupported, "of tokenizers",
    ),
    "no settings": ({"tokenizer_config.json": b"{"}, ModelCorrupt, "tokenizer_config.json is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "kind", "words"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_of_the_tokenizer_is_named(
    tmp_path: Path, files: dict[str, bytes | None], kind: type[Fatal], words: str
) -> None:
    folder = folder_of(
        sentencepiece(METASPACE), tmp_path / "m", "llama", tokenizer_class="LlamaTokenizer"
    )
    for name, content in files.items():
        (folder / name).unlink() if content is None else spoiled(folder, name, content)
    for make in (served, codec_from_folder):
        with pytest.raises(kind, match=words):
            make(folder)


def test_a_vocabulary_and_its_merges_are_served_with_their_own_ids(tmp_path: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        letter: number for number, letter in enumerate([*reversed(letters), "<|endoftext|>", "th"])
    }
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "vocab_size": len(vocabulary)})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    codec = served(folder)
    assert codec.encode("the") == [vocabulary["th"], vocabulary["e"]]
    assert codec.decode(codec.encode("Grüße, 世界")) == "Grüße, 世界"
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": len(vocabulary)})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(ModelUnsupported, match=r"no tokenizer\.json"):
        served(folder)


def test_half_a_vocabulary_is_no_tokenizer(tmp_path: Path) -> None:
    folder = tiny_model.make_tokenizer(tmp_path / "m")
    assert file_tokenizer(folder) is not None
    assert file_tokenizer(tmp_path) is None


@pytest.mark.parametrize("odd", ["5", {"a": 1}, [1, "2"], True, 1.5, [[1]]])
def test_end_tokens_of_an_odd_shape_are_refused_by_name(odd: Any) -> None:
    with pytest.raises(ModelUnsupported, match="eos_token_id"):
        eos_token_ids({"eos_token_id": odd})
    assert (eos_token_ids({}), eos_token_ids({"eos_token_id": 3}), eos_token_ids({"eos_token_id": [3, 4]})) == (
        set(), {3}, {3, 4},
    )  # fmt: skip
