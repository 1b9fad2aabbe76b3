"""Where a folder's chat templates may lie, and which of them a request gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_runtime.errors import InvalidRequest, ModelUnsupported
from llm_runtime.fetching.local import local_model
from llm_runtime.files.locate import local_artifacts, locate
from llm_runtime.files.package import package
from llm_runtime.files.template_files import folder_templates
from llm_runtime.text.codec import Codec, codec_from_folder
from unit.runtime import tiny_model
from unit.runtime.fetching.fakes import write_model

PLAIN = "{{ messages[0].content }}"
WITH_TOOLS = "{{ tools | length }} {{ messages[0].content }}<tool_call>"
ASKED: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tiny_model.make_tokenizer(tmp_path / "model")
    configure(made, None)
    return made


def configure(folder: Path, template: Any) -> None:
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("chat_template", None)
    file.write_text(
        json.dumps(settings | ({"chat_template": template} if template is not None else {}))
    )


def rendered(codec: Codec) -> tuple[str, str]:
    return codec.render_chat(ASKED), codec.render_chat(ASKED, [TOOL])


BOTH = ("hi", "1 hi<tool_call>")


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (
            [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": WITH_TOOLS}],
            BOTH,
        ),
        ({"default": PLAIN, "tool_use": WITH_TOOLS}, BOTH),
        ({"default": PLAIN, "rag": "documents"}, ("hi", "hi")),
        ([{"name": "chat", "template": PLAIN}], ("hi", "hi")),
        ([{"name": "chat", "template": PLAIN}, {"name": "tool_use", "template": WITH_TOOLS}], BOTH),
        ("\ufeff" + PLAIN, ("hi", "hi")),
    ],
)
def test_templates_in_the_tokenizers_settings(
    folder: Path, configured: Any, expected: tuple[str, str]
) -> None:
    configure(folder, configured)
    assert rendered(codec_from_folder(folder)) == expected


def test_a_folder_with_tool_use_alone_says_that_it_has_none_for_plain_chat(folder: Path) -> None:
    configure(folder, {"tool_use": WITH_TOOLS})
    codec = codec_from_folder(folder)
    assert codec.render_chat(ASKED, [TOOL]) == BOTH[1]
    with pytest.raises(InvalidRequest, match="no chat template"):
        codec.render_chat(ASKED)


@pytest.mark.parametrize(
    "configured", [5, [5], {"default": 5}, [{"name": "default"}], {"default": {"x": "y"}}]
)
def test_templates_that_are_no_texts_are_refused_by_their_file(
    folder: Path, configured: Any
) -> None:
    configure(folder, configured)
    with pytest.raises(ModelUnsupported, match=r"chat_template in tokenizer_config\.json"):
        codec_from_folder(folder)


def test_templates_in_files_take_the_place_of_the_settings(folder: Path) -> None:
    configure(folder, "old")
    (folder / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf" + PLAIN.encode())
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(WITH_TOOLS)
    assert rendered(codec_from_folder(folder)) == BOTH


def test_a_processors_template_is_the_last_resort(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PLAIN}))
    assert rendered(codec_from_folder(folder)) == ("hi", "hi")
    configure(folder, "own")
    assert rendered(codec_from_folder(folder)) == ("own", "own")


def test_what_save_pretrained_leaves_is_read(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": PLAIN, "tool_use": WITH_TOOLS}
    saved = tmp_path / "saved"
    tokenizer.save_pretrained(saved)
    (saved / "config.json").write_text((folder / "config.json").read_text())
    assert rendered(codec_from_folder(saved)) == BOTH


def test_a_configured_template_is_a_text_or_the_name_of_one_of_the_folders(folder: Path) -> None:
    configure(folder, {"default": PLAIN, "tool_use": WITH_TOOLS, "rag": "rag"})
    assert rendered(codec_from_folder(folder, "rag")) == ("rag", "rag")
    assert rendered(codec_from_folder(folder, "own")) == ("own", "own")


def test_named_templates_come_along_into_a_flat_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text(PLAIN)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(WITH_TOOLS)
    (folder / "additional_chat_templates" / "notes.txt").write_text("no template")
    (folder / "model.safetensors").write_bytes(b"")
    located = locate(local_artifacts(folder))
    assert (
        located.files["chat_template-tool_use.jinja"] == "additional_chat_templates/tool_use.jinja"
    )
    assert not any("notes" in name for name in located.files)
    flat = tmp_path / "flat"
    flat.mkdir()
    for name, path in located.files.items():
        (flat / name).write_bytes((folder / path).read_bytes())
    assert rendered(codec_from_folder(flat)) == BOTH


def test_named_templates_are_pushed_as_they_were_saved_and_found_again(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(WITH_TOOLS)
    pushed = package(folder).files
    assert "additional_chat_templates/tool_use.jinja" in pushed
    registry = tmp_path / "registry"
    for name, file in pushed.items():
        (registry / name).parent.mkdir(parents=True, exist_ok=True)
        (registry / name).write_bytes(file.read_bytes())
    found = locate(local_artifacts(registry)).files
    assert found["chat_template-tool_use.jinja"] == "additional_chat_templates/tool_use.jinja"
    flat = tmp_path / "flat"
    flat.mkdir()
    for name, path in found.items():
        (flat / name).write_bytes((registry / path).read_bytes())
    assert "chat_template-tool_use.jinja" in package(flat).files


def test_a_local_folder_with_named_templates_is_served_as_it_lies(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = tiny_model.make(tmp_path / "model")
    (made / "additional_chat_templates").mkdir()
    (made / "additional_chat_templates" / "tool_use.jinja").write_text(WITH_TOOLS)
    assert local_model(made, tmp_path / "models") == made
    assert folder_templates(made, {"chat_template": PLAIN}).with_tools == WITH_TOOLS
