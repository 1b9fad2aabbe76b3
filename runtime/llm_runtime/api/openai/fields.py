"""Fields that clients send beyond those that this server acts on;
docs/fields.md says the same in a table.

A field that could change the answer, and isn't done, is refused by name: only its values that ask
for nothing pass. A field that can't change the answer, whatever it says, is a hint: it is taken and
dropped.
"""

from typing import Any

HINTS = frozenset(
    {
        # Hints for prefix caching, which works without them.
        "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "cache_control", "cache_prompt",
        # What is kept or sold beside the answer: nothing is.
        "store", "metadata", "service_tier", "priority",
        # How long an answer should be or is expected to be.
        # No model here has been taught these words.
        "verbosity", "prediction",
        # The client's own name for the request: the header X-Request-ID carries it.
        "request_id",
    }
)  # fmt: skip
"""Fields of both endpoints that can't change an answer."""

NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    # vLLM's defaults.
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "min_tokens": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "bad_words": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "cache_salt": ("",),
    "vllm_xargs": ({},),
    "logits_processors": ([],),
    "best_of": (1,),
    # As much as there is room for, in llama.cpp's and LM Studio's words.
    "max_tokens": (-1,),
    # SGLang's.
    "no_stop_trim": (False,),
    "return_hidden_states": (False,),
}
"""Fields of both endpoints, with the values that ask for nothing."""

NEUTRAL_IN_CHAT: dict[str, tuple[Any, ...]] = {
    **NEUTRAL_VALUES,
    "max_completion_tokens": (-1,),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "echo": (False,),
    "add_special_tokens": (False,),
    "include_reasoning": (True,),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "thinking": ({"type": "disabled"},),
}

NEUTRAL_IN_COMPLETIONS: dict[str, tuple[Any, ...]] = {
    **NEUTRAL_VALUES,
    "suffix": ("",),
}

NEUTRAL_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    # To go on with a message instead of answering it,
    # as DeepSeek's, Mistral's and Qwen's servers do.
    "prefix": (False,),
    "partial": (False,),
    # What a model that reads text only does not see, and OpenAI's older form of calls.
    "images": ([],),
    "audio": (),
    "videos": ([],),
    "function_call": (),
}
"""The wishes among a message's fields.
All others that this server does not know change nothing about the answer."""
