"""`POST /v1/embeddings`: vectors of texts, by a model that makes them."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from starlette.responses import Response

from llm_runtime import errors
from llm_runtime.api.answering import (
    adapter_of,
    collect,
    job,
    model_name,
    pipeline_of,
    start,
    worked_out,
)
from llm_runtime.api.answers import JsonResponse
from llm_runtime.api.body import Body, Text
from llm_runtime.api.documents import OPENAI_ERRORS, example
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.openai.prompts import several, texts_or_tokens
from llm_runtime.common.aside import aside
from llm_runtime.contract import EMBEDDINGS_PATH
from llm_runtime.pipeline import MAX_INPUTS, Job
from llm_runtime.request import EmbeddingModel, EmbeddingPrompt, Sampling

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["OpenAI"], responses=OPENAI_ERRORS
)

NO_PROMPT = EmbeddingPrompt("")


def _something(inputs: list[Any]) -> list[Any]:
    for number, each in enumerate(inputs):
        if not each:
            which = "it is empty" if len(inputs) == 1 else f"number {number} of it is empty"
            raise ValueError(f"{which}: there is nothing to embed; leave it out")
    return inputs


def _not_too_many(inputs: Any) -> Any:
    inputs = several(inputs)
    if isinstance(inputs, list) and len(inputs) > MAX_INPUTS:
        raise ValueError(
            f"has {len(inputs)} texts, and at most {MAX_INPUTS} are embedded at once: send them in"
            " several requests"
        )
    return inputs


Inputs = Annotated[
    list[Any],
    Field(min_length=1, max_length=MAX_INPUTS),
    BeforeValidator(
        _not_too_many, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
    ),
    AfterValidator(texts_or_tokens),
    AfterValidator(_something),
]


class EmbeddingsBody(Body):
    """Texts to embed."""

    model_config = example(model="support-bot", input=["A text to find", "and another one"])

    model: Annotated[Text, Field(min_length=1)]
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Fewer than the model's own: each vector's first ones, of length 1 again where it was before."""
    user: Annotated[Text, Field(max_length=512)] | None = None
    """The client's own name of its user. Only a hash of it reaches the usage log."""
    prompt_name: Annotated[Text, Field(min_length=1, max_length=128)] | None = None
    """One of the model's own prompts, which goes before each text; as Text Embeddings Inference has
    it."""
    hints: ClassVar[frozenset[str]] = frozenset({"request_id", "priority", "metadata"})
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {
        # vLLM's defaults, and those of Text Embeddings Inference.
        "add_special_tokens": (True,),
        "truncate": (False,),
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
    }

    def job(self, request: Request, adapter: str, model: EmbeddingModel) -> Job:
        """Raises `errors.InvalidRequest` for what `model` does not do."""
        self._check_dimensions(model)
        prompt = self._prompt(model)
        return job(
            request,
            "embd-",
            prompts=tuple(
                prompt.text + each if isinstance(each, str) else each for each in self.input
            ),
            sampling=Sampling(0, temperature=0),
            adapter=adapter,
            user=self.user,
            prompt_field="input",
            embeds=True,
            unpooled_tokens=prompt.unpooled_tokens,
        )

    def _check_dimensions(self, model: EmbeddingModel) -> None:
        if self.dimensions is None or self.dimensions == model.dimensions:
            return
        if self.dimensions > model.dimensions:
            raise errors.InvalidRequest(
                f"The model's embeddings have {model.dimensions} dimensions; ask for as many or"
                f" fewer, not {self.dimensions}.",
                param="dimensions",
            )
        if model.matryoshka and self.dimensions not in model.matryoshka:
            known = ", ".join(map(str, (*model.matryoshka, model.dimensions)))
            raise errors.InvalidRequest(
                f"The model's embeddings can be cut to {known} dimensions, not to"
                f" {self.dimensions}.",
                param="dimensions",
            )

    def _prompt(self, model: EmbeddingModel) -> EmbeddingPrompt:
        if self.prompt_name is None:
            default = model.prompts.get(model.default_prompt, NO_PROMPT)
            # Whoever sends tokens has decided on all of them.
            return default if isinstance(self.input[0], str) else NO_PROMPT
        if not isinstance(self.input[0], str):
            raise errors.InvalidRequest(
                "A prompt is a text, and goes before texts: send texts, or tokens without"
                " prompt_name.",
                param="prompt_name",
            )
        if self.prompt_name not in model.prompts:
            known = ", ".join(map(repr, model.prompts)) or "none"
            raise errors.InvalidRequest(
                f"The model has no prompt {self.prompt_name!r}; it has {known}.",
                param="prompt_name",
            )
        return model.prompts[self.prompt_name]


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers; or with `encoding_format` base64 the same as float32, little-endian."""


class EmbeddingUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@router.post(EMBEDDINGS_PATH, summary="Embed texts", responses={200: {"model": Embeddings}})
async def embeddings(request: Request, body: EmbeddingsBody) -> Response:
    """A vector for each text, in their order."""
    pipeline = pipeline_of(request)
    adapter = adapter_of(request, body.model)
    model = pipeline.embedding
    wanted = await worked_out(request, body.job, request, adapter, model)
    generation = await start(request, wanted)
    choices = await collect(request, generation)
    tokens = generation.prompt_tokens
    envelope = {
        "object": "list",
        "model": model_name(generation, pipeline),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    texts = [choice.text for choice in choices]
    if body.encoding_format == "base64" and body.dimensions in (None, model.dimensions):
        return JsonResponse({**envelope, "data": _data(texts)})
    normalise = model.normalised and body.dimensions is not None
    return await aside(_rendered, envelope, texts, body, normalise=normalise)


def _data(vectors: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]


def _rendered(
    envelope: dict[str, Any], texts: Sequence[str], body: EmbeddingsBody, *, normalise: bool
) -> Response:
    """The answer with vectors as numbers, or cut. Takes long for many: call it in a thread."""
    vectors = [_vector(text, body.dimensions, normalise=normalise) for text in texts]
    written: Sequence[Any] = vectors
    if body.encoding_format == "base64":
        written = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    content = orjson.dumps({**envelope, "data": _data(written)}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json")


def _vector(text: str, dimensions: int | None, *, normalise: bool) -> Any:
    # Imported late: a server of a model that generates never needs it.
    import numpy as np

    vector = np.frombuffer(base64.b64decode(text), dtype="<f4")[:dimensions]
    if normalise:
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return np.ascontiguousarray(vector, dtype=np.float32)
