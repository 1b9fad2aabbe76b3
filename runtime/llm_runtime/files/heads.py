"""Whether a model generates text, judged by its configuration alone:
others have another head, or none."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llm_runtime.errors import ConfigInvalid, ModelUnsupported

_CONTINUES = re.compile(
    r"(ForCausalLM|LMHeadModel|ModelWithLMHead|ForConditionalGeneration|BertGenerationDecoder)$"
)
_HEADLESS = re.compile(r"(?<!LMHead)Model$")
_ENCODERS = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "electra", "ernie", "megatron-bert", "rembert", "roberta",
    "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Bidirectional model types that Transformers loads as causal models if asked to. They are causal
only if their configuration says `is_decoder`."""

_BIDIRECTIONAL = _ENCODERS | {
    "albert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "ernie_m", "esm", "eurobert",
    "flaubert", "funnel", "ibert", "layoutlm", "longformer", "luke", "mobilebert", "modernbert", "mpnet", "mra",
    "nezha", "nomic_bert", "nystromformer", "squeezebert", "xlm", "yoso",
}  # fmt: skip
"""Model types that read in both directions. One without a head is of use for embeddings only."""


def embeds(task: str, settings: Mapping[str, Any], *, described: bool) -> bool:
    """Whether a model is served for its embeddings: as `task` (engine.task) says, or by its files.

    `settings` are those of its config.json. `described`: there are files of sentence-transformers.
    """
    if task != "auto" or described:
        return task != "generate"
    named = settings.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    headless = bool(names) and all(map(_HEADLESS.search, names))
    encodes = settings.get("model_type") in _BIDIRECTIONAL and not settings.get("is_decoder")
    return headless and encodes


def refuse_quantised(asked: str, *, stored: bool) -> None:
    """Refuse integers as weights of a model for embeddings: `asked` for by engine.quantization, or
    `stored` in the checkpoint. Raises ConfigInvalid or ModelUnsupported."""
    if asked != "none":
        raise ConfigInvalid(
            f"engine.quantization {asked} is for models that generate; set it to none for embeddings"
        )
    if stored:
        raise ModelUnsupported(
            "the checkpoint is quantised; for embeddings this runtime takes plain weights only"
        )


def refuse_other_heads(
    architectures: Iterable[object] | None, model_type: object, is_decoder: object
) -> None:
    """Raise ModelUnsupported, saying what the model is,
    if config.json shows that it is no causal language model."""
    names = [str(name) for name in architectures or ()]
    if names and not any(map(_CONTINUES.search, names)):
        what = _what(names[0])
    elif model_type in _ENCODERS and not is_decoder:
        what = (
            f"an encoder: {model_type} reads in both directions unless config.json says is_decoder"
        )
    else:
        return
    raise ModelUnsupported(
        f"{', '.join(names) or model_type} is no causal language model but {what}; this runtime serves models that "
        "continue a text (…ForCausalLM), and with task embed the embeddings of others"
    )


def _what(name: str) -> str:
    base, separator, purpose = name.partition("For")
    if separator:
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", purpose)
        return f"one for {' '.join(word if word.isupper() else word.lower() for word in words)}"
    return (
        "one without a head, as encoders and models for embeddings are"
        if base.endswith("Model")
        else "another kind"
    )
