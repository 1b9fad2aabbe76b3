"""Text to tokens and back, and the sampling defaults of a model's folder. Needs `tokenizers` and
Jinja but no torch, so that the HTTP process can use it."""

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llm_runtime.contract import NO_CHAT_TEMPLATE
from llm_runtime.engine.limits import MAX_REPETITION_PENALTY
from llm_runtime.errors import InvalidRequest, ModelUnsupported
from llm_runtime.files.template_files import ChatTemplates, folder_templates
from llm_runtime.files.tokenizer_files import file_tokenizer, no_tokenizer, read_json, special_texts
from llm_runtime.request import Constraint, Ending, Message
from llm_runtime.text.bounds import TooMuch
from llm_runtime.text.constraint import GrammarMatcher, Grammars
from llm_runtime.text.detokenize import Spelling, Text
from llm_runtime.text.letters import Letters, encoded, unspelled
from llm_runtime.text.templates import BadTemplate, compiled, render

_SAMPLING = {
    "temperature": (0.0, 2.0), "top_p": (0.0, 1.0), "top_k": (0, 1_000_000), "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, MAX_REPETITION_PENALTY),
}  # fmt: skip

log = logging.getLogger(__name__)


class Codec:
    """`request.TextCodec` and the engine's `Vocabulary` over a fast tokenizer.
    Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary_size: int,
        eos_token_ids: frozenset[int],
        templates: ChatTemplates | None = None,
        special_tokens: dict[str, str] | None = None,
        sampling_defaults: Mapping[str, float] | None = None,
    ) -> None:
        self.vocabulary_size = vocabulary_size
        self.eos_token_ids = eos_token_ids
        self.sampling_defaults: Mapping[str, float] = sampling_defaults or {}
        self._tokenizer = tokenizer
        self.special_tokens: Mapping[str, str] = special_tokens or {}
        self.templates = templates or ChatTemplates()
        self.chat_template = self.templates.default
        self.tool_template = self.templates.with_tools
        for template in {self.chat_template, self.tool_template} - {""}:
            _check(template)
        self._spelling = Spelling(tokenizer)
        self.control_ids = self._spelling.control_ids
        self._letters = Letters(tokenizer, self.chat_template, self.tool_template)
        # Without ids of end tokens the grammar compiler looks for one by name,
        # so names must stay as they are.
        source = partial(unspelled, tokenizer) if eos_token_ids else tokenizer.to_str
        self._grammars = Grammars(source, vocabulary_size, eos_token_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (
            self._tokenizer,
            self.vocabulary_size,
            self.eos_token_ids,
            self.templates,
            self.special_tokens,
        )
        return Codec, (*parts, self.sampling_defaults)

    def prepare(self) -> None:
        """Build what the first requests would otherwise wait for. Takes tenths of a second."""
        if self.chat_template or self.tool_template:
            self._letters.prepare()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of plain text, by default with the special tokens that the tokenizer adds."""
        return encoded(self._tokenizer, text, special=special)

    def encode_chat(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        ending: Ending = "answer",
    ) -> list[int]:
        """Apply the chat template. Raises InvalidRequest if there is none or it refuses."""
        if marked := self._letters.mark(messages, tools, options or {}):
            text = self.render_chat(marked.messages, marked.tools, marked.options, ending)
            return self._letters.encode(text, marked.originals)
        text = self.render_chat(messages, tools, options, ending)
        return encoded(self._tokenizer, text, special=False)

    def render_chat(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        ending: Ending = "answer",
    ) -> str:
        """The text that `encode_chat` encodes."""
        template = self.tool_template if tools else self.chat_template
        if not template:
            raise InvalidRequest(
                "the model has no chat template: use /v1/completions, or set model.chatTemplate in the LLMDeployment",
                code=NO_CHAT_TEMPLATE,
            )
        try:
            return render(
                template,
                messages,
                tools,
                self.special_tokens,
                options,
                add_generation_prompt=ending == "answer",
                continued=ending == "continued",
            )
        except BadTemplate as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; with `special` also that of special ones."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=not special))

    def token_name(self, token_id: int) -> str:
        """The token as the vocabulary spells it; "" where it has none of this number."""
        return self._tokenizer.id_to_token(token_id) or ""

    def token_text(self, token_id: int) -> str:
        """Text of one token in the middle of a text, special tokens included.
        Incomplete characters show as U+FFFD."""
        return self._spelling.token_bytes(token_id).decode(errors="replace")

    def check_constraint(self, constraint: Constraint) -> None:
        """Raise InvalidRequest, saying why, if the constraint can't be enforced.
        Valid ones are cached."""
        self._grammars.check(constraint)

    def matcher(self, constraint: Constraint) -> GrammarMatcher:
        """A matcher at the constraint's beginning, for one sequence.
        Raises as `check_constraint` does."""
        return self._grammars.matcher(constraint)

    def detokenizer(self, prompt: Sequence[int] = (), shown: Collection[int] = ()) -> Text:
        """For one sequence, which may continue `prompt`'s text.
        Special tokens not in `shown` are hidden."""
        return self._spelling.text(prompt, shown)


def codec_from_folder(folder: Path, chat_template: str = "") -> Codec:
    """A codec from `tokenizer.json` and the files beside it, without Transformers.
    `chat_template` overrides theirs."""
    if (tokenizer := file_tokenizer(folder)) is None:
        raise no_tokenizer(folder)
    settings = read_json(folder / "tokenizer_config.json")
    special = special_texts(folder)
    ids = {tokenizer.token_to_id(special["eos_token"])} if "eos_token" in special else set()
    ids |= eos_token_ids(read_json(folder / "generation_config.json")) or eos_token_ids(
        read_json(folder / "config.json")
    )
    templates = folder_templates(folder, settings, chat_template)
    size = int(read_json(folder / "config.json").get("vocab_size", tokenizer.get_vocab_size()))
    return Codec(tokenizer, size, frozenset(i for i in ids if i is not None), templates, special)


def eos_token_ids(settings: dict[str, Any]) -> set[int]:
    """The `eos_token_id` of a configuration: one number, several, or none.
    Otherwise raises ModelUnsupported."""
    ids = settings.get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise ModelUnsupported(
            f"eos_token_id of the model's configuration is {settings['eos_token_id']!r}, neither a token's number "
            "nor a list of them: correct generation_config.json or config.json"
        )
    return set(ids)


def sampling_defaults(generation: dict[str, Any]) -> dict[str, float]:
    """Defaults that a generation_config.json recommends,
    limited to fields and values that a request may set.

    `do_sample` is ignored, as in vLLM's server: a client that wants greedy decoding asks for it.
    """
    defaults = {}
    for name, (least, most) in _SAMPLING.items():
        value = generation.get(name)
        if value is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if least <= value <= most and (name != "top_k" or isinstance(value, int)):
            defaults[name] = value
        else:
            log.warning(
                "generation_config.json has a value outside the range for requests",
                extra={name: value},
            )
    return defaults


def _check(template: str) -> None:
    try:
        compiled(template)
    except BadTemplate as error:
        raise ModelUnsupported(f"the chat template is not valid Jinja: {error}") from error
    try:
        render(template, [{"role": "user", "content": "Hello"}])
    except BadTemplate as error:
        # A template may refuse this conversation.
        # But one that exceeds a bound here would exceed it for every request.
        if isinstance(error.__cause__, TooMuch):
            raise ModelUnsupported(f"the chat template can't be used: {error}") from error
