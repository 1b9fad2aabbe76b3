"""What a request must satisfy before it is admitted, so that nothing in a step can raise because of it."""

from dataclasses import dataclass

from llm_runtime.errors import InvalidRequest
from llm_runtime.request import GenerationRequest, Sampling

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of the loaded model. `max_model_length` counts prompt and answer together, in tokens."""

    max_model_length: int
    vocabulary_size: int

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequest, naming the field and the limit, when the engine can't serve `request`."""
        self._check_prompt(request.prompt_token_ids)
        self._check_length(len(request.prompt_token_ids), request.sampling.max_tokens)
        self._check_sampling(request.sampling)

    def _check_prompt(self, token_ids: tuple[int, ...]) -> None:
        if not token_ids:
            raise InvalidRequest("the prompt is empty: send at least one token", param="prompt")
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self.vocabulary_size:
            wrong = low if low < 0 else high
            raise InvalidRequest(
                f"token id {wrong} is not in the model's vocabulary of {self.vocabulary_size}", param="prompt"
            )

    def _check_length(self, prompt_tokens: int, max_tokens: int) -> None:
        if max_tokens < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, not {max_tokens}", param="max_tokens")
        if prompt_tokens + max_tokens > self.max_model_length:
            raise InvalidRequest(
                f"the model serves at most {self.max_model_length} tokens, but the prompt has {prompt_tokens} and "
                f"max_tokens asks for {max_tokens} more: shorten the prompt or lower max_tokens to "
                f"{max(self.max_model_length - prompt_tokens, 0)}",
                param="max_tokens" if prompt_tokens < self.max_model_length else "prompt",
                code="context_length_exceeded",
            )

    def _check_sampling(self, sampling: Sampling) -> None:
        if not 0 <= sampling.temperature <= 100:
            raise InvalidRequest(f"temperature must be from 0 to 100, not {sampling.temperature}", param="temperature")
        if not 0 < sampling.top_p <= 1:
            raise InvalidRequest(f"top_p must be over 0 and at most 1, not {sampling.top_p}", param="top_p")
        if sampling.top_k < 0:
            raise InvalidRequest(f"top_k must be 0 (off) or more, not {sampling.top_k}", param="top_k")
        if sampling.logprobs is not None and not 0 <= sampling.logprobs <= min(MAX_LOGPROBS, self.vocabulary_size):
            raise InvalidRequest(
                f"logprobs must be from 0 to {MAX_LOGPROBS}, not {sampling.logprobs}", param="logprobs"
            )
        if len(sampling.stop) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in sampling.stop):
            raise InvalidRequest(
                f"at most {MAX_STOPS} stop strings of at most {MAX_STOP_CHARACTERS} characters each", param="stop"
            )
