"""Whether a model generates text, judged by its configuration alone:
others have another head, or none."""

import re
from collections.abc import Iterable

from llm_runtime.errors import ModelUnsupported

_CONTINUES = re.compile(
    r"(ForCausalLM|LMHeadModel|ModelWithLMHead|ForConditionalGeneration|BertGenerationDecoder)$"
)
_ENCODERS = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "electra", "ernie", "megatron-bert", "rembert", "roberta",
    "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Bidirectional model types that Transformers loads as causal models if asked to. They are causal
only if their configuration says `is_decoder`."""


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
        "continue a text (…ForCausalLM)"
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
