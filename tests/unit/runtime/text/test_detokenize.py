"""What tokens add to a text, in letters and in bytes, adds up to it:
for tokenizers of every kind, and any tokens."""

import random
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from llm_runtime.api.openai.answer import _logprobs as chat_logprobs
from llm_runtime.api.openai.logprobs import Lists, of_prompt
from llm_runtime.api.spelled import of_each_choice
from llm_runtime.contract import STANDARD_TIER
from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.files.template_files import ChatTemplates
from llm_runtime.job import Job
from llm_runtime.request import Caller, GenerationRequest, PromptLogprobs, Sampling, TokenEvent
from llm_runtime.text.codec import Codec
from unit.runtime import tiny_model

SPECIAL = ["<s>", "</s>", "<tool_call>"]
WORDS = [
    "▁",
    "▁the",
    "▁is",
    "is",
    "▁Paris",
    "Paris",
    "▁▁",
    "é",
    "▁世",
    "界",
    ".",
    "\n",
    "▁Hi",
    "▁there",
    "▁you",
    "<b>",
]
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def byte_level() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ġ", "t"), ("Ã", "©"), ("â", "Ĥ"), ("âĤ", "¬"), ("Ġ", "ð"), ("Ł", "ĳ")]
    vocabulary = {
        letter: number for number, letter in enumerate([*letters, *(a + b for a, b in pairs)])
    }
    made = Tokenizer(models.BPE(vocabulary, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def pieces(decoder: Any, *, byte_fallback: bool = True) -> Tokenizer:
    words = ["<unk>", *WORDS, *(f"<0x{byte:02X}>" for byte in range(256) if byte_fallback)]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=byte_fallback))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoder
    return made


def word_piece() -> Tokenizer:
    words = ["[UNK]", "the", "##s", "capital", "##es", "of", "é", "##é", "世"]
    made = Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(cleanup=False)
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "Llama 2": lambda: pieces(decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)])),
    "Gemma": lambda: pieces(decoders.Sequence(LLAMA)),
    "Metaspace": lambda: pieces(decoders.Metaspace(), byte_fallback=False),
    "Metaspace, never": lambda: pieces(
        decoders.Metaspace(prepend_scheme="never"), byte_fallback=False
    ),
    "WordPiece": word_piece,
    "words": lambda: pieces(decoders.Replace("▁", "_"), byte_fallback=False),
}


def codec_of(kind: str) -> Codec:
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens(SPECIAL)
    return Codec(
        tokenizer,
        tokenizer.get_vocab_size(),
        frozenset({tokenizer.token_to_id("</s>")}),
        ChatTemplates(),
    )


@pytest.fixture(scope="module", params=list(KINDS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return codec_of(request.param)


def cases(codec: Codec, count: int, seed: int = 0) -> Any:
    """Random tokens, half of them of texts, half of anything."""
    chance = random.Random(seed)
    texts = ["the capital is Paris", "a€b 👩‍👩‍👧 é", " Hi there\n\nyou", "世界 <b>."]
    for _ in range(count):
        some = [
            token
            for _ in range(chance.randrange(3))
            for token in codec.encode(chance.choice(texts))
        ]
        wild = [chance.randrange(codec.vocabulary_size) for _ in range(chance.randrange(12))]
        cut = chance.randrange(len(some) + 1)
        ids = [*some[:cut], *wild, *some[cut:]][:40]
        if ids:
            yield [token for token in ids if token not in codec.eos_token_ids] or ids[:1]


def test_parts_add_up_to_what_the_tokenizer_itself_writes(codec: Codec) -> None:
    seen = 0
    for ids in cases(codec, 400):
        text = codec.detokenizer()
        parts = "".join(map(text.push, ids)) + text.flush()
        whole = codec.decode(ids)
        # A broken character among bytes that are tokens spoils the whole ones beside it in
        # `decode`, not in a stream.
        if (
            "\ufffd" not in whole
            or codec._spelling.steps is None
            or codec._spelling.steps.byte_level
        ):
            seen += 1
            assert parts == whole, ids
    assert seen > 50


@pytest.mark.parametrize("continued", [False, True], ids=["chat", "a text that goes on"])
@pytest.mark.parametrize("shown", [False, True], ids=["markup hidden", "markup shown"])
def test_texts_bytes_and_offsets_of_logprobs_join_to_the_answer(
    codec: Codec, continued: bool, shown: bool
) -> None:
    prompt = (
        tuple(codec.encode("the capital")) if continued else ({"role": "user", "content": "x"},)
    )
    words = (codec.control_ids["<tool_call>"],) if shown else ()
    for ids in cases(codec, 150, seed=1):
        job = Job(
            "id", "/v1", "", Caller("a", "a", STANDARD_TIER), (prompt,),  # type: ignore[arg-type]
            Sampling(len(ids), logprobs=2), shown_token_ids=words,
        )  # fmt: skip
        tokens = prompt if continued else (codec.control_ids["<s>"],)
        asked = GenerationRequest(
            "r", tokens, job.sampling, continues=continued, shown_token_ids=words
        )  # type: ignore[arg-type]
        sequence = Sequence(asked, codec)
        events: list[TokenEvent] = []
        for token in ids:
            events.append(sequence.append(Sampled(token, -0.5, ((token, -0.5), (3, -1.0)))))
            if events[-1].finish_reason:
                break
        answer = "".join(event.text for event in events)
        chat = chat_logprobs(of_each_choice(job, codec)[0], events, ended=True)
        old = Lists(of_each_choice(job, codec)[0]).take(events, ended=True)
        assert chat is not None
        assert "".join(each["token"] for each in chat["content"]) == answer
        assert "".join(old["tokens"]) == answer
        own = b"".join(bytes(each["bytes"]) for each in chat["content"])
        each_byte = codec._spelling.steps is not None and not codec._spelling.steps.byte_level
        assert own.decode(errors="llm_runtime.each_byte" if each_byte else "replace") == answer or (
            codec._spelling.steps is None and own.decode(errors="replace") == answer
        )
        ends = [at + len(text) for at, text in zip(old["text_offset"], old["tokens"], strict=True)]
        assert [0, *ends][:-1] == old["text_offset"]
        streamed = of_each_choice(job, codec)[0]
        parts = [streamed.take([event], ended=event is events[-1]) for event in events]
        assert [each.text for part in parts for each in part] == old["tokens"]


def test_an_echoed_prompt_has_an_entry_for_each_token_where_it_stands(codec: Codec) -> None:
    for ids in cases(codec, 150, seed=2):
        later = len(ids) - 1
        values = (array("f", [-1.0]) * later, array("I", [1]) * later)
        lists = of_prompt(PromptLogprobs(0, array("I", ids), *values), 0, codec)
        text = codec.detokenizer()
        hidden = []
        whole = ""
        for number in ids:
            own = text.bytes_of(number)
            part = text.push(number)
            hidden.append(not own and not part)
            whole += part
        whole += text.flush()
        entries = zip(ids, hidden, lists["tokens"], lists["text_offset"], strict=True)
        for number, is_hidden, token, at in list(entries)[:-1]:
            expected = codec.token_text(number) if is_hidden else whole[at : at + len(token)]
            assert token == expected
        assert lists["token_logprobs"] == [None, *[-1.0] * later]


def test_a_text_goes_on_with_the_space_of_its_first_word() -> None:
    codec = codec_of("Llama 2")
    ids = [codec._tokenizer.token_to_id(word) for word in ("▁Paris", "▁is", "▁", "▁there")]
    prompt = codec.encode("the capital")
    for before, expected in (
        (prompt, " Paris is  there"),
        ([], "Paris is  there"),
        ([codec.control_ids["<s>"]], "Paris is  there"),
    ):
        text = codec.detokenizer(before)
        assert "".join(map(text.push, ids)) + text.flush() == expected
    assert [codec.token_text(token) for token in ids] == [" Paris", " is", " ", " there"]


def test_bytes_that_are_no_character_take_no_space_of_later_words() -> None:
    codec = codec_of("Llama 2")
    number = codec._tokenizer.token_to_id
    ids = [number(word) for word in ("▁Hi", "<0x0A>", "<0xF0>", "<0x9F>", "▁there", "▁you")]
    text = codec.detokenizer()
    assert "".join(map(text.push, ids)) + text.flush() == "Hi\n\ufffd\ufffd there you"


def test_the_bytes_of_a_character_are_those_of_its_tokens(tmp_path: Path) -> None:
    codec = codec_of("byte-level")
    ids = codec.encode("👩")
    assert len(ids) > 1
    text = codec.detokenizer()
    assert b"".join(map(text.bytes_of, ids)) == "👩".encode()
    assert [text.push(token) for token in ids] == [""] * (len(ids) - 1) + ["👩"]


def test_markup_shows_only_to_its_reader() -> None:
    codec = codec_of("byte-level")
    tag = codec.control_ids["<tool_call>"]
    end = codec.control_ids["</s>"]
    ids = [*codec.encode("a"), tag, *codec.encode("b👩")[:-1], tag, end]
    hidden = codec.detokenizer()
    shown = codec.detokenizer(shown=[tag])
    assert "".join(map(hidden.push, ids)) + hidden.flush() == "ab\ufffd"
    assert "".join(map(shown.push, ids)) + shown.flush() == "a<tool_call>b\ufffd<tool_call>"
    assert tiny_model.EOS not in codec.control_ids


def test_an_added_word_is_written_as_it_stands() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["Grüße"])
    codec = Codec(tokenizer, tokenizer.get_vocab_size(), frozenset(), ChatTemplates())
    [word] = codec.encode("Grüße")
    text = codec.detokenizer()
    assert (codec.token_text(word), text.bytes_of(word), text.push(word)) == (
        "Grüße",
        "Grüße".encode(),
        "Grüße",
    )
