"""The filters of one model, applied to prompts before anything else sees them,
and to answers before they are sent."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from llm_runtime import errors
from llm_runtime.contract import FiltersConfig
from llm_runtime.filters.finder import Finder
from llm_runtime.filters.mask import Mask, found_in, masked
from llm_runtime.job import Job, Prompt, is_conversation

T = TypeVar("T")


class Filters:
    """Filters prompts, and creates masks for answers. Safe to share between requests."""

    def __init__(self, config: FiltersConfig, own_texts: Sequence[str] = ()) -> None:
        """`own_texts` are the server's system prompt and chat templates. Data in them is allowed.

        Raises `errors.ConfigInvalid` that names an invalid pattern.
        """
        self._pii = config.pii
        self._output = config.output
        # Compiled even if filters are off, so that an invalid pattern is found now and not when it
        # is turned on.
        needed = config.patterns or (config.pii, config.output) != ("Disabled", "Disabled")
        self._finder = Finder(config.patterns) if needed else None
        self._own = (
            {text for own in own_texts for _, text in found_in(self._finder, own)}
            if self._finder
            else set()
        )

    @property
    def reads_prompts(self) -> bool:
        """Whether prompts are checked at all."""
        return self._pii != "Disabled" and self._finder is not None

    def prompts(self, job: Job) -> Job:
        """The job with personal data masked.
        Raises `errors.InvalidRequest` if the configuration rejects it."""
        if self._output == "Mask" and (field := _shows(job)):
            message = (
                f"{field} would show what this server's filters mask; send the request without it."
            )
            raise errors.InvalidRequest(message, param=field, code="unsupported_parameter")
        if not self.reads_prompts:
            return job
        names: set[str] = set()
        prompts = tuple(self._prompt(job, prompt, names) for prompt in job.prompts)
        options = self._value(job.template_options, names)
        tools = tuple(self._tool(tool, names) for tool in job.tools)
        if not names:
            return job
        if self._pii == "Reject":
            raise _holds_some(job, names)
        return replace(job, prompts=prompts, template_options=options, tools=tools)

    def masked(self, value: T) -> T:
        """A value, wherever it holds texts, as `prompts` would have masked it."""
        return self._value(value, set()) if self.reads_prompts else value

    def encoded(self, job: Job, texts: Iterable[str]) -> None:
        """Check the prompts as the model reads them, decoded from tokens:
        a chat template may join texts to a match.

        Raises `errors.InvalidRequest` if there is one, because it can't be masked any more.
        """
        assert self._finder
        found = [
            kind
            for text in texts
            for kind, matched in found_in(self._finder, text)
            if matched not in self._own
        ]
        if found:
            raise _holds_some(job, found)

    def masks(self, choices: int) -> list[Mask]:
        """A mask for each answer; none if answers are not filtered."""
        return (
            [Mask(self._finder) for _ in range(choices)]
            if self._output == "Mask" and self._finder
            else []
        )

    def _prompt(self, job: Job, prompt: Prompt, names: set[str]) -> Prompt:
        if isinstance(prompt, str):
            return self._text(prompt, names)
        if is_conversation(prompt):
            return tuple(
                self._message(message, names) for message in prompt if isinstance(message, dict)
            )
        message = (
            "This server looks for personal data in prompts, which it can't in token ids; send"
            " text."
        )
        raise errors.InvalidRequest(message, param=job.prompt_field, code="pii_unchecked")

    def _message(self, message: dict[str, Any], names: set[str]) -> dict[str, Any]:
        seen: dict[str, Any] = self._value(message, names)
        return {**seen, "role": message["role"]}

    def _tool(self, tool: dict[str, Any], names: set[str]) -> dict[str, Any]:
        assert self._finder
        kinds = [kind for kind, _ in found_in(self._finder, tool["function"]["name"])]
        if kinds:
            message = (
                f"The name of a function holds personal data ({kinds[0]}), which can't be masked:"
                " rename it."
            )
            raise errors.InvalidRequest(message, param="tools", code="pii_detected")
        seen: dict[str, Any] = self._value(tool, names)
        return seen

    def _value(self, value: Any, names: set[str]) -> Any:
        """Mask `value` wherever a template may write it:
        also keys of objects, and numbers by their digits."""
        match value:
            case str():
                return self._text(value, names)
            case dict():
                return {
                    self._text(name, names): self._value(inner, names)
                    for name, inner in value.items()
                }
            case list() | tuple():
                return type(value)(self._value(inner, names) for inner in value)
            case int() | float() if not isinstance(value, bool):
                written = json.dumps(value)
                text = self._text(written, names)
                return value if text == written else text
        return value

    def _text(self, text: str, names: set[str]) -> str:
        assert self._finder
        text, found = masked(self._finder, text)
        names.update(found)
        return text


def _shows(job: Job) -> str:
    """A field of the request by which texts would leave the server unmasked; "" if none."""
    fields = {
        "echo": job.echo,
        "prompt_logprobs": job.sampling.prompt_logprobs is not None,
        "logprobs": job.sampling.logprobs is not None,
    }
    return next((name for name, asked in fields.items() if asked), "")


def _holds_some(job: Job, kinds: Iterable[str]) -> errors.Refusal:
    listed = ", ".join(sorted(set(kinds)))
    message = (
        f"The {job.prompt_field} holds personal data ({listed}), which this server does not take."
    )
    return errors.InvalidRequest(message, param=job.prompt_field, code="pii_detected")
