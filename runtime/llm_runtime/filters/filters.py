"""The filters of one model: over its prompts before anybody else sees them, over its answers before they go out."""

from dataclasses import replace
from typing import Any

from llm_runtime import errors
from llm_runtime.contract import FiltersConfig
from llm_runtime.filters.finder import Finder
from llm_runtime.filters.mask import Mask, masked
from llm_runtime.job import Job, Prompt, is_conversation

STRUCTURE = frozenset({"role", "type"})
"""Fields of a message that are no text of anybody's."""


class Filters:
    """Made once for each configuration. Raises `errors.ConfigInvalid`, naming the pattern at fault."""

    def __init__(self, config: FiltersConfig) -> None:
        self._pii, self._output = config.pii, config.output
        # Compiled even where all is off: a wrong pattern must not wait for the day on which it is needed.
        needed = config.patterns or (config.pii, config.output) != ("Disabled", "Disabled")
        self._finder = Finder(config.patterns) if needed else None

    def prompts(self, job: Job) -> Job:
        """The job as the model may see it. Raises `errors.InvalidRequest` for what must not reach it."""
        if self._output == "Mask" and job.sampling.logprobs is not None:
            message = "Log probabilities would show what this server's filters mask; send the request without logprobs."
            raise errors.InvalidRequest(message, param="logprobs", code="unsupported_parameter")
        if self._pii == "Disabled" or self._finder is None:
            return job
        names: set[str] = set()
        prompts = tuple(self._prompt(job, prompt, names) for prompt in job.prompts)
        options = self._value(job.template_options, names)
        if not names:
            return job
        if self._pii == "Reject":
            kinds = ", ".join(sorted(names))
            message = f"The {job.prompt_field} holds personal data ({kinds}), which this server does not take."
            raise errors.InvalidRequest(message, param=job.prompt_field, code="pii_detected")
        return replace(job, prompts=prompts, template_options=options)

    def masks(self, choices: int) -> list[Mask]:
        """One for each answer; none where answers pass as they are."""
        return [Mask(self._finder) for _ in range(choices)] if self._output == "Mask" and self._finder else []

    def _prompt(self, job: Job, prompt: Prompt, names: set[str]) -> Prompt:
        if isinstance(prompt, str):
            return self._text(prompt, names)
        if is_conversation(prompt):
            return tuple(self._value(message, names) for message in prompt)
        message = "This server looks for personal data in prompts, which it can't in token ids; send text."
        raise errors.InvalidRequest(message, param=job.prompt_field, code="pii_unchecked")

    def _value(self, value: Any, names: set[str]) -> Any:
        match value:
            case str():
                return self._text(value, names)
            case dict():
                return {
                    name: inner if name in STRUCTURE else self._value(inner, names) for name, inner in value.items()
                }
            case list() | tuple():
                return type(value)(self._value(inner, names) for inner in value)
        return value

    def _text(self, text: str, names: set[str]) -> str:
        assert self._finder
        text, found = masked(self._finder, text)
        names.update(found)
        return text
