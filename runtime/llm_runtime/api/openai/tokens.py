"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM's server has them."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator

from llm_runtime import errors
from llm_runtime.api.answering import (
    adapter_of,
    caller_of,
    job,
    pipeline_of,
    prompt_tokens,
    worked_out,
)
from llm_runtime.api.body import MAX_MESSAGES, Body, Text, conflict
from llm_runtime.api.documents import OPENAI_ERRORS, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.openai.common import TokenId
from llm_runtime.api.openai.conversation import ConversationFields
from llm_runtime.api.openai.messages import ChatMessage, for_template
from llm_runtime.contract import DETOKENIZE_PATH, TOKENIZE_PATH, TOKENIZER_PATH
from llm_runtime.pipeline import Job
from llm_runtime.request import Sampling
from llm_runtime.stream import while_connected

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["OpenAI"], responses=OPENAI_ERRORS
)


class TokenizeBody(ConversationFields):
    """A text, or a conversation, to be told the tokens of."""

    model_config = example(model="support-bot", prompt="Once upon a time", return_token_strs=True)

    model: Annotated[Text, Field(min_length=1)] | None = None
    """Left out, it is the model itself."""
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES)] = Field(
        default_factory=list
    )
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds those that it adds around a text; left out, it does."""
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _a_prompt_or_messages(self) -> "TokenizeBody":
        if self.prompt is not None:
            for name in sorted(ConversationFields.model_fields.keys() & self.model_fields_set):
                raise conflict("prompt", f"does not go together with {name}; send one of them")
            return self
        if not self.messages:
            raise conflict("prompt", "must be there, or messages")
        if self.add_special_tokens:
            raise conflict(
                "add_special_tokens", "must be false with messages: the chat template writes them"
            )
        return self

    def job(self, request: Request, adapter: str) -> Job:
        return job(
            request,
            prompts=(for_template(self.messages) if self.prompt is None else self.prompt,),
            tools=tuple(offered.for_template() for offered in self.offered),
            template_options=self.template_options,
            ending=self.ending,
            special_tokens=self.add_special_tokens is not False,
            prompt_field="messages" if self.prompt is None else "prompt",
            sampling=Sampling(max_tokens=1),
            adapter=adapter,
            # Whoever splits texts before they are embedded counts their tokens.
            embeds=self.prompt is not None and pipeline_of(request).engine.embedding is not None,
        )


class Tokens(BaseModel):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    """Most tokens of prompt and answer together."""
    tokens: list[int]
    token_strs: list[str] | None = None
    """The tokens as the vocabulary spells them, if asked for."""


class DetokenizeBody(Body):
    """Tokens to be told the text of."""

    model_config = example(model="support-bot", tokens=[72, 105])

    model: Annotated[Text, Field(min_length=1)] | None = None
    tokens: list[TokenId]


class Detokenized(BaseModel):
    """The text of tokens, with those of special ones."""

    prompt: str


@router.post(TOKENIZE_PATH, summary="Turn a prompt into tokens")
async def tokenize(request: Request, body: TokenizeBody) -> Tokens:
    """The tokens that a request with this prompt, or with these messages, would be billed.

    Nothing is generated; for limits it is one request without tokens."""
    pipeline = pipeline_of(request)
    adapter = adapter_of(request, body.model)
    await worked_out(request, body.offer, pipeline.codec.tool_template)
    wanted = await worked_out(request, body.job, request, adapter)
    tokens = await prompt_tokens(request, wanted)
    names = [pipeline.codec.token_name(token) for token in tokens]
    return Tokens(
        count=len(tokens),
        max_model_len=pipeline.engine.max_model_length,
        tokens=tokens,
        token_strs=names if body.return_token_strs else None,
    )


@router.post(DETOKENIZE_PATH, summary="Turn tokens into text")
async def detokenize(request: Request, body: DetokenizeBody) -> Detokenized:
    """The text of these tokens. For limits it is one request without tokens."""
    pipeline = pipeline_of(request)
    adapter_of(request, body.model)
    size = pipeline.codec.vocabulary_size
    for place, token in enumerate(body.tokens):
        if token >= size:
            raise errors.InvalidRequest(
                f"tokens[{place}]: token id {token} is not in the model's vocabulary of {size}",
                param=f"tokens[{place}]",
            )
    decoding = pipeline.decoded(caller_of(request), body.tokens)
    timeout_seconds = pipeline.config.server.request_timeout_seconds
    return Detokenized(prompt=await while_connected(request.receive, decoding, timeout_seconds))


@router.get(TOKENIZER_PATH, summary="Describe the tokenizer")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """Special tokens and the chat template, for clients that make prompts by themselves."""
    pipeline = pipeline_of(request)
    codec = pipeline.codec
    return {
        **codec.special_tokens,
        "chat_template": codec.chat_template or None,
        "model_max_length": pipeline.engine.max_model_length,
    }
