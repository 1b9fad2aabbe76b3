"""The filters of one model: over its prompts before anybody else sees them, over its answers before they go out."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from llm_runtime import errors
from llm_runtime.contract import FiltersConfig
from llm_runtime.filters.finder import Finder
from llm_runtime.filters.mask import Mask, found_in, masked
from llm_runtime.job import Job, Prompt, is_conversation


class Filters:
    """Made once for each configuration. Raises `errors.ConfigInvalid`, naming the pattern at fault."""

    def __init__(self, config: FiltersConfig, own_texts: Sequence[str] = ()) -> None:
        """`own_texts` are the server's: its system prompt and chat templates, whose contents pass as they are."""
        self._pii = config.pii
        self._output = config.output
        # Compiled even where all is off: a wrong pattern must not wait for the day on which it is needed.
        needed = config.patterns or (config.pii, config.output) != ("Disabled", "Disabled")
        self._finder = Finder(config.patterns) if needed else None
        self._own = {text for own in own_texts for _, text in found_in(self._finder, own)} if self._finder else set()

    @property
    def reads_prompts(self) -> bool:
        """Whether `prompts` and `encoded` look for anything."""
        return self._pii != "Disabled" and self._finder is not None

    def prompts(self, job: Job) -> Job:
        """The job as the model may see it. Raises `errors.InvalidRequest` for what must not reach it."""
        if self._output == "Mask" and job.sampling.logprobs is not None:
            message = "Log probabilities would show what this server's filters mask; send the request without logprobs."
            raise errors.InvalidRequest(message, param="logprobs", code="unsupported_parameter")
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

    def encoded(self, job: Job, texts: Iterable[str]) -> None:
        """Look at the prompts as the model reads them, decoded from tokens: a chat template brings texts together.

        Raises `errors.InvalidRequest` for what is found only there. Nothing can be masked any more.
        """
        assert self._finder
        found = [kind for text in texts for kind, matched in found_in(self._finder, text) if matched not in self._own]
        if found:
            raise _holds_some(job, found)

    def masks(self, choices: int) -> list[Mask]:
        """One for each answer; none where answers pass as they are."""
        return [Mask(self._finder) for _ in range(choices)] if self._output == "Mask" and self._finder else []

    def _prompt(self, job: Job, prompt: Prompt, names: set[str]) -> Prompt:
        if isinstance(prompt, str):
            return self._text(prompt, names)
        if is_conversation(prompt):
            return tuple(self._message(message, names) for message in prompt if isinstance(message, dict))
        message = "This server looks for personal data in prompts, which it can't in token ids; send text."
        raise errors.InvalidRequest(message, param=job.prompt_field, code="pii_unchecked")

    def _message(self, message: dict[str, Any], names: set[str]) -> dict[str, Any]:
        seen: dict[str, Any] = self._value(message, names)
        return {**seen, "role": message["role"]}

    def _tool(self, tool: dict[str, Any], names: set[str]) -> dict[str, Any]:
        assert self._finder
        if found := [kind for kind, _ in found_in(self._finder, tool["function"]["name"])]:
            message = f"The name of a function holds personal data ({found[0]}), which can't be masked: rename it."
            raise errors.InvalidRequest(message, param="tools", code="pii_detected")
        seen: dict[str, Any] = self._value(tool, names)
        return seen

    def _value(self, value: Any, names: set[str]) -> Any:
        """`value` masked wherever a template may write it: names in objects, and numbers as they are written."""
        match value:
            case str():
                return self._text(value, names)
            case dict():
                return {self._text(name, names): self._value(inner, names) for name, inner in value.items()}
            case list() | tuple():
                return type(value)(self._value(inner, names) for inner in value)
            case int() | float() if not isinstance(value, bool):
                text = self._text(written := json.dumps(value), names)
                return value if text == written else text
        return value

    def _text(self, text: str, names: set[str]) -> str:
        assert self._finder
        text, found = masked(self._finder, text)
        names.update(found)
        return text


def _holds_some(job: Job, kinds: Iterable[str]) -> errors.Refusal:
    listed = ", ".join(sorted(set(kinds)))
    message = f"The {job.prompt_field} holds personal data ({listed}), which this server does not take."
    return errors.InvalidRequest(message, param=job.prompt_field, code="pii_detected")
