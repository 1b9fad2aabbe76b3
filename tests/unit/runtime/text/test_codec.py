"""Text to tokens and back, without torch."""

import json
import pickle
import random
from pathlib import Path

import pytest

from llm_runtime.errors import InvalidRequest, ModelUnsupported
from llm_runtime.text.codec import Codec, codec_from_folder
from unit.runtime import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return codec_from_folder(folder)


def incremental(codec: Codec, ids: list[int]) -> list[str]:
    text = codec.detokenizer()
    return [*(text.push(token) for token in ids), text.flush()]


def test_text_survives_the_way_there_and_back(codec: Codec) -> None:
    text = "Grüße, 世界! 👩‍👩‍👧"
    assert codec.decode(codec.encode(text)) == text
    assert "".join(incremental(codec, codec.encode(text))) == text


def test_another_process_gets_the_same_codec(folder: Path) -> None:
    here = codec_from_folder(folder, "{{ eos_token }}{{ messages[0].content }}")
    there: Codec = pickle.loads(pickle.dumps(here))
    assert (there.vocabulary_size, there.eos_token_ids) == (
        here.vocabulary_size,
        here.eos_token_ids,
    )
    assert there.encode("Grüße") == here.encode("Grüße")
    assert there.render_chat([{"role": "user", "content": "hi"}]) == "<|end|>hi"


def test_characters_show_when_their_last_byte_is_there(codec: Codec) -> None:
    assert incremental(codec, codec.encode("a€b")) == ["a", "", "", "€", "b", ""]


def test_half_a_character_at_the_end_shows_as_decode_shows_it(codec: Codec) -> None:
    ids = codec.encode("a€")[:-1]
    assert "".join(incremental(codec, ids)) == codec.decode(ids)


def test_parts_add_up_to_the_whole_for_any_tokens(codec: Codec) -> None:
    chance = random.Random(0)
    for _ in range(300):
        ids = [chance.randrange(codec.vocabulary_size) for _ in range(chance.randrange(1, 40))]
        assert "".join(incremental(codec, ids)) == codec.decode(ids)


def test_special_tokens_are_hidden_in_text_and_named_alone(codec: Codec) -> None:
    end = next(iter(codec.eos_token_ids))
    assert codec.decode([*codec.encode("hi"), end]) == "hi"
    assert codec.token_text(end) == tiny_model.EOS


def test_chat_uses_the_template_and_adds_a_generation_prompt(codec: Codec) -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": 'a "b" <c>'}]
    assert (
        codec.render_chat(messages)
        == '<|system|>be kind<|end|><|user|>a "b" <c><|end|><|assistant|>'
    )
    assert len(codec.encode_chat(messages)) < len(codec.render_chat(messages))


def test_a_configured_template_takes_the_place_of_the_tokenizers(folder: Path) -> None:
    codec = codec_from_folder(
        folder, chat_template="{{ messages[-1]['content'] | tojson }}{{ eos_token }}"
    )
    assert codec.render_chat([{"role": "user", "content": "<é>"}]) == '"<é>"<|end|>'


def test_without_a_template_chat_is_an_invalid_request(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(InvalidRequest, match="no chat template"):
        codec_from_folder(tmp_path).encode_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7]['content'] + 1 }}",
        "{{ messages.x.y }}",
    ],
)
def test_a_template_that_refuses_is_an_invalid_request(folder: Path, template: str) -> None:
    with pytest.raises(InvalidRequest, match="template refuses"):
        codec_from_folder(folder, template).encode_chat([{"role": "user", "content": "x"}])


def test_a_template_can_reach_nothing_outside(folder: Path) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InvalidRequest):
        codec_from_folder(folder, escape).encode_chat([{"role": "user", "content": "x"}])


def test_a_template_that_is_no_jinja_is_refused_at_start(folder: Path) -> None:
    with pytest.raises(ModelUnsupported, match="not valid Jinja"):
        codec_from_folder(folder, "{% if %}")


def test_a_template_that_takes_too_much_for_a_single_message_is_refused_at_start(
    folder: Path,
) -> None:
    with pytest.raises(ModelUnsupported, match="it would make a text longer than"):
        codec_from_folder(folder, "{{ 'x' * 200000000 }}")
    assert codec_from_folder(folder, "{{ raise_exception('not this') }}")


def test_several_end_tokens_are_all_honoured(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258]}))
    assert codec_from_folder(tmp_path).eos_token_ids == {256, 257, 258}


def test_a_folder_without_a_fast_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="save_pretrained"):
        codec_from_folder(tmp_path)
