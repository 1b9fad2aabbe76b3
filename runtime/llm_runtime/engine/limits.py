"""What a request must satisfy before it is admitted,
so that nothing in a step can raise because of it."""

from dataclasses import dataclass

from llm_runtime.errors import InvalidRequest
from llm_runtime.request import EmbeddingModel, GenerationRequest, Sampling

MAX_LOGPROBS = 20
ENGINE_STOPS = 16
"""Stop strings of one request. Each costs a search in every step."""
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 64
MAX_BIASES = 1024
MAX_BIAS = 100
MAX_REPETITION_PENALTY = 10
RANGES = (
    ("temperature", 0, 100),
    ("min_p", 0, 1),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
)
EMBEDS_ONLY = "The model makes embeddings and generates nothing: ask it at /v1/embeddings."
GENERATES_ONLY = "The model generates texts and makes no embeddings: ask a model that does."


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of the loaded model.
    `max_model_length` counts prompt and answer together, in tokens."""

    max_model_length: int
    vocabulary_size: int
    embedding: EmbeddingModel | None = None
    """What the model's embeddings are like; None for a model that generates."""

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequest, naming the field and the limit,
        when the engine can't serve `request`."""
        self._check_task(request)
        self._check_prompt(request.prompt_token_ids)
        if request.embeds:
            self._check_text(len(request.prompt_token_ids))
            return
        self._check_length(len(request.prompt_token_ids), request.sampling.max_tokens)
        self._check_sampling(request.sampling)

    def _check_prompt(self, token_ids: tuple[int, ...]) -> None:
        if not token_ids:
            raise InvalidRequest("the prompt is empty: send at least one token", param="prompt")
        self._check_token(min(token_ids), "prompt")
        self._check_token(max(token_ids), "prompt")

    def _check_task(self, request: GenerationRequest) -> None:
        if request.embeds == (self.embedding is not None):
            return
        raise InvalidRequest(EMBEDS_ONLY if self.embedding else GENERATES_ONLY, param="model")

    def _check_text(self, tokens: int) -> None:
        if tokens > self.max_model_length:
            raise InvalidRequest(
                f"a text may have at most {self.max_model_length} tokens, not {tokens}",
                param="input",
                code="context_length_exceeded",
            )

    def _check_length(self, prompt_tokens: int, max_tokens: int) -> None:
        if max_tokens < 0:
            raise InvalidRequest(
                f"max_tokens must not be negative, as {max_tokens} is", param="max_tokens"
            )
        if prompt_tokens + max_tokens > self.max_model_length:
            room = max(self.max_model_length - prompt_tokens, 0)
            raise InvalidRequest(
                # OpenAI's words, by which clients know that a shorter prompt would do.
                f"This model's maximum context length is {self.max_model_length} tokens. However,"
                f" you requested {prompt_tokens + max_tokens} tokens ({prompt_tokens} in the"
                f" prompt, {max_tokens} for the answer). Please reduce the length of the"
                f" prompt{f', or max_tokens to {room}' if room else ''}.",
                param="max_tokens" if room else "prompt",
                code="context_length_exceeded",
            )

    def _check_sampling(self, sampling: Sampling) -> None:
        for field, low, high in RANGES:
            value = getattr(sampling, field)
            if not low <= value <= high:  # Not a number is in no range.
                raise InvalidRequest(
                    f"{field} must be from {low:g} to {high:g}, not {value:g}", param=field
                )
        if not 0 < sampling.top_p <= 1:
            raise InvalidRequest(
                f"top_p must be over 0 and at most 1, not {sampling.top_p:g}", param="top_p"
            )
        if not 0 < sampling.repetition_penalty <= MAX_REPETITION_PENALTY:
            raise InvalidRequest(
                f"repetition_penalty must be over 0 and at most {MAX_REPETITION_PENALTY}, "
                f"not {sampling.repetition_penalty:g}",
                param="repetition_penalty",
            )
        if sampling.top_k < 0:
            raise InvalidRequest(
                f"top_k must be 0 (off) or more, not {sampling.top_k}", param="top_k"
            )
        most = min(MAX_LOGPROBS, self.vocabulary_size)
        for field in ("logprobs", "prompt_logprobs"):
            value = getattr(sampling, field)
            if value is not None and not 0 <= value <= most:
                raise InvalidRequest(f"{field} must be from 0 to {most}, not {value}", param=field)
        self._check_bias(sampling.logit_bias)
        self._check_stops(sampling)

    def _check_bias(self, entries: tuple[tuple[int, float], ...]) -> None:
        if len(entries) > MAX_BIASES:
            raise InvalidRequest(
                f"logit_bias may name at most {MAX_BIASES} tokens, not {len(entries)}",
                param="logit_bias",
            )
        for token_id, bias in entries:
            self._check_token(token_id, "logit_bias")
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                raise InvalidRequest(
                    f"logit_bias must be from {-MAX_BIAS} to {MAX_BIAS}, not {bias:g} (token"
                    f" {token_id})",
                    param="logit_bias",
                )

    def _check_stops(self, sampling: Sampling) -> None:
        if len(sampling.stop) > ENGINE_STOPS:
            raise InvalidRequest(
                f"at most {ENGINE_STOPS} stop strings, not {len(sampling.stop)}", param="stop"
            )
        for stop in sampling.stop:
            if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
                raise InvalidRequest(
                    f"a stop string must have from 1 to {MAX_STOP_CHARACTERS} characters, not"
                    f" {len(stop)}",
                    param="stop",
                )
        if len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
            raise InvalidRequest(
                f"at most {MAX_STOP_TOKENS} stop_token_ids, not {len(sampling.stop_token_ids)}",
                param="stop_token_ids",
            )
        for token_id in sampling.stop_token_ids:
            self._check_token(token_id, "stop_token_ids")

    def _check_token(self, token_id: int, field: str) -> None:
        if not 0 <= token_id < self.vocabulary_size:
            raise InvalidRequest(
                f"{field}: token id {token_id} is not in the model's vocabulary of"
                f" {self.vocabulary_size}",
                param=field,
            )
