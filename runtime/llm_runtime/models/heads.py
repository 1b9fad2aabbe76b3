"""Which models continue a text, by their configuration alone: everything else has another head, or none."""

import re
from collections.abc import Iterable

from llm_runtime.errors import ModelUnsupported

_CONTINUES = re.compile(r"(ForCausalLM|LMHeadModel|ModelWithLMHead|ForConditionalGeneration|BertGenerationDecoder)$")
_ENCODERS = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "electra", "ernie", "megatron-bert", "rembert", "roberta",
    "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Model types that Transformers makes causal models of if asked to, though they read in both directions unless their
configuration says `is_decoder`."""


def refuse_other_heads(architectures: Iterable[object] | None, model_type: object, is_decoder: object) -> None:
    """Raise ModelUnsupported for what config.json shows to be no causal language model, saying what it is."""
    names = [str(name) for name in architectures or ()]
    if names and not any(map(_CONTINUES.search, names)):
        what = _what(names[0])
    elif model_type in _ENCODERS and not is_decoder:
        what = f"an encoder: {model_type} reads in both directions unless config.json says is_decoder"
    else:
        return
    raise ModelUnsupported(
        f"{', '.join(names) or model_type} is no causal language model but {what}; this runtime serves models that "
        "continue a text (…ForCausalLM)"
    )


def _what(name: str) -> str:
    base, found, purpose = name.partition("For")
    if found:
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", purpose)
        return f"one for {' '.join(word if word.isupper() else word.lower() for word in words)}"
    return "one without a head, as encoders and models for embeddings are" if base.endswith("Model") else "another kind"
