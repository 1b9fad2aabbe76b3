"""A folder's chat templates: where they lie, under which names, and which of them is for what."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_runtime.errors import ModelUnsupported

DEFAULT, TOOL_USE, RAG = "default", "tool_use", "rag"
"""Names that Transformers knows; it takes the second by itself when there are tools."""

TEMPLATE_FOLDER = "additional_chat_templates"
"""Where `save_pretrained` leaves a folder's named templates."""
FLAT_PREFIX = "chat_template-"
"""A fetched model's folder is flat: there the template `tool_use` is `chat_template-tool_use.jinja`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """Two texts: for conversations, and for those with tools."""

    default: str = ""
    """"": the model has none."""
    with_tools: str = ""

    @classmethod
    def single(cls, template: str) -> "ChatTemplates":
        return cls(template, template)


def flat_name(path: str) -> str | None:
    """What a named template is called in a flat folder; None for a file that is none."""
    folder, _, name = path.rpartition("/")
    if not name.endswith(".jinja"):
        return None
    if folder.rpartition("/")[2] == TEMPLATE_FOLDER:
        return f"{FLAT_PREFIX}{name}"
    return name if name.startswith(FLAT_PREFIX) else None


def saved_name(flat: str, path: str) -> str:
    """What `save_pretrained` calls the file at `path` inside of a model's folder; `flat` is its name in a flat one."""
    if flat.startswith(FLAT_PREFIX) and not path.endswith(flat):
        return f"{TEMPLATE_FOLDER}/{flat.removeprefix(FLAT_PREFIX)}"
    return flat


def folder_templates(folder: Path, tokenizer_settings: Mapping[str, Any], configured: str = "") -> ChatTemplates:
    """The folder's own, or the `configured` one: a template, or the name of one of the folder's."""
    named = _configured_in(tokenizer_settings.get("chat_template"), "tokenizer_config.json") or _of_processor(folder)
    named |= _files(folder)
    if configured:
        return ChatTemplates.single(named.get(configured, configured))
    default = named.get(DEFAULT) or _only(named)
    if named and not default:
        log.warning("none of the model's chat templates is for plain conversations", extra={"names": sorted(named)})
    return ChatTemplates(default, named.get(TOOL_USE) or default)


def _files(folder: Path) -> dict[str, str]:
    found = {path.stem: _text(path) for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    found |= {path.stem.removeprefix(FLAT_PREFIX): _text(path) for path in sorted(folder.glob(f"{FLAT_PREFIX}*.jinja"))}
    own = folder / "chat_template.jinja"
    return found | ({DEFAULT: _text(own)} if own.is_file() else {})


def _of_processor(folder: Path) -> dict[str, str]:
    """Models that also read images keep it in a file of their processor's."""
    file = folder / "chat_template.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(_text(file))
    except ValueError as error:
        raise ModelUnsupported(f"{file} is no JSON: {error}; save the template as chat_template.jinja") from error
    return _configured_in(content.get("chat_template") if isinstance(content, dict) else content, file.name)


def _configured_in(value: Any, file: str) -> dict[str, str]:
    """By name: one text, a mapping of names, or a list of entries with `name` and `template`."""
    if not value:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value.removeprefix("\ufeff")}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair):
        return {name: template.removeprefix("\ufeff") for name, template in value.items()}
    raise ModelUnsupported(
        f"chat_template in {file} is neither a text nor texts by name; "
        "put the template into chat_template.jinja, or set model.chatTemplate"
    )


def _only(named: Mapping[str, str]) -> str:
    """The one template of another name than those for special ends."""
    others = [template for name, template in named.items() if name not in (TOOL_USE, RAG)]
    return others[0] if len(others) == 1 else ""


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig")  # A byte order mark is no part of a prompt.
