"""A folder's chat templates: where they are, their names, and which one is used for what."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_runtime.errors import ModelUnsupported

DEFAULT = "default"
TOOL_USE = "tool_use"
RAG = "rag"
"""Names that Transformers gives a meaning.
It selects the second by itself if a request has tools."""

TEMPLATE_FOLDER = "additional_chat_templates"
"""Where `save_pretrained` writes named templates."""
FLAT_PREFIX = "chat_template-"
"""A fetched model's folder is flat.
In it, the template `tool_use` is `chat_template-tool_use.jinja`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """The templates for conversations without and with tools."""

    default: str = ""
    """"" if the model has none."""
    with_tools: str = ""

    @classmethod
    def single(cls, template: str) -> "ChatTemplates":
        return cls(template, template)


def flat_name(path: str) -> str | None:
    """Name of a named template in a flat folder; None if `path` is not a named template."""
    folder, _, name = path.rpartition("/")
    if not name.endswith(".jinja"):
        return None
    if folder.rpartition("/")[2] == TEMPLATE_FOLDER:
        return f"{FLAT_PREFIX}{name}"
    return name if name.startswith(FLAT_PREFIX) else None


def saved_name(flat: str, path: str) -> str:
    """Path inside a model's folder, as `save_pretrained` writes it,
    of a file with the name `flat` in a flat folder."""
    if flat.startswith(FLAT_PREFIX) and not path.endswith(flat):
        return f"{TEMPLATE_FOLDER}/{flat.removeprefix(FLAT_PREFIX)}"
    return flat


def folder_templates(
    folder: Path, tokenizer_settings: Mapping[str, Any], configured: str = ""
) -> ChatTemplates:
    """The folder's templates, or the `configured` one:
    a template's text, or the name of one of the folder's."""
    named = _configured_in(
        tokenizer_settings.get("chat_template"), "tokenizer_config.json"
    ) or _of_processor(folder)
    named |= _files(folder)
    if configured:
        return ChatTemplates.single(named.get(configured, configured))
    default = named.get(DEFAULT) or _only(named)
    if named and not default:
        log.warning(
            "the model has no chat template for plain conversations", extra={"names": sorted(named)}
        )
    return ChatTemplates(default, named.get(TOOL_USE) or default)


def _files(folder: Path) -> dict[str, str]:
    found = {path.stem: _text(path) for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    found |= {
        path.stem.removeprefix(FLAT_PREFIX): _text(path)
        for path in sorted(folder.glob(f"{FLAT_PREFIX}*.jinja"))
    }
    own = folder / "chat_template.jinja"
    return found | ({DEFAULT: _text(own)} if own.is_file() else {})


def _of_processor(folder: Path) -> dict[str, str]:
    """Templates in chat_template.json, where the processors of multimodal models keep them."""
    file = folder / "chat_template.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(_text(file))
    except ValueError as error:
        raise ModelUnsupported(
            f"{file} is not JSON: {error}; save the template as chat_template.jinja"
        ) from error
    return _configured_in(
        content.get("chat_template") if isinstance(content, dict) else content, file.name
    )


def _configured_in(value: Any, file: str) -> dict[str, str]:
    """Templates by name, from a text, a mapping of names,
    or a list of entries with `name` and `template`."""
    if not value:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value.removeprefix("\ufeff")}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if isinstance(value, dict) and all(
        isinstance(part, str) for pair in value.items() for part in pair
    ):
        return {name: template.removeprefix("\ufeff") for name, template in value.items()}
    raise ModelUnsupported(
        f"chat_template in {file} is neither a template nor a set of named templates; "
        "put the template into chat_template.jinja, or set model.chatTemplate"
    )


def _only(named: Mapping[str, str]) -> str:
    """The only template besides those for special purposes; "" if there is not exactly one."""
    others = [template for name, template in named.items() if name not in (TOOL_USE, RAG)]
    return others[0] if len(others) == 1 else ""


def _text(file: Path) -> str:
    return file.read_text(
        encoding="utf-8-sig"
    )  # A byte order mark must not become part of a prompt.
