"""The architecture matrix: one random two-layer configuration for each kind of language model.

Those in BATCHED are expected to run batched, those in SEQUENTIAL are served by the slow path.
The table
in docs/operations.md is checked against this one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unit.runtime import tiny_model

WINDOW = 8
"""Sliding windows are so short that most prompts of the tests are longer."""

VOCABULARY = 260
EOS = 256

SHAPE: Any = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2, "head_dim": 16}
SLIDING: Any = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
EXPERTS: Any = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SMALL_GPT: Any = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}


@dataclass(frozen=True)
class Architecture:
    """`config` is the name of a configuration class of Transformers,
    `options` what it is made with."""

    name: str
    config: str
    options: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    """What keeps it from being batched."""

    def make(self, folder: Path) -> Path:
        """A complete model folder with random weights, always the same ones."""
        import torch
        import transformers

        tiny_model.make_tokenizer(folder)
        torch.manual_seed(0)
        ends = {"eos_token_id": EOS, "bos_token_id": EOS, "pad_token_id": EOS}
        settings = getattr(transformers, self.config)(
            **{"vocab_size": VOCABULARY, "tie_word_embeddings": False, **ends, **self.options}
        )
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        spread(model)
        model.save_pretrained(folder)
        return folder


def spread(model: Any) -> None:
    """Weights large enough that the most likely token depends on what was read,
    whatever the architecture's default."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "conv" not in name and "A_log" not in name:
                parameter.normal_(0.0, 0.2)
            elif "sink" in name:
                parameter.normal_(0.0, 2.0)


BATCHED = [
    Architecture("Llama, SmolLM, SmolLM2", "LlamaConfig", GROUPED),
    Architecture("Mistral", "MistralConfig", GROUPED | {"sliding_window": None}),
    Architecture(
        "Mistral with a sliding window", "MistralConfig", GROUPED | {"sliding_window": WINDOW}
    ),
    Architecture("Ministral", "MinistralConfig", GROUPED | SLIDING),
    Architecture("Qwen2, Qwen2.5", "Qwen2Config", GROUPED),
    Architecture(
        "Qwen2 with a sliding window",
        "Qwen2Config",
        GROUPED | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Architecture("Qwen3", "Qwen3Config", GROUPED),
    Architecture("Gemma", "GemmaConfig", GROUPED),
    Architecture(
        "Gemma 2",
        "Gemma2Config",
        GROUPED | SLIDING | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    ),
    Architecture(
        "Gemma 3 (text)", "Gemma3TextConfig", GROUPED | SLIDING | {"query_pre_attn_scalar": 8}
    ),
    Architecture("Phi", "PhiConfig", GROUPED),
    Architecture("Phi-3, Phi-4", "Phi3Config", GROUPED | {"sliding_window": None}),
    Architecture("Phi-3 with a sliding window", "Phi3Config", GROUPED | {"sliding_window": WINDOW}),
    Architecture("GPT-2", "GPT2Config", SMALL_GPT),
    Architecture("GPT-NeoX, Pythia", "GPTNeoXConfig", SHAPE),
    Architecture("GPT-BigCode (SantaCoder, StarCoder)", "GPTBigCodeConfig", SMALL_GPT),
    Architecture("OPT", "OPTConfig", SHAPE | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    Architecture("BioGPT", "BioGptConfig", SHAPE),
    Architecture("BERT as a decoder", "BertConfig", SHAPE | {"is_decoder": True}),
    Architecture("SmolLM3", "SmolLM3Config", GROUPED | {"no_rope_layers": [1, 0]}),
    Architecture("OLMo", "OlmoConfig", GROUPED),
    Architecture("OLMo 2", "Olmo2Config", GROUPED),
    Architecture("OLMo 3", "Olmo3Config", GROUPED | SLIDING),
    Architecture("Command R", "CohereConfig", GROUPED),
    Architecture("Command R7B, Command A", "Cohere2Config", GROUPED | SLIDING),
    Architecture("StarCoder2", "Starcoder2Config", GROUPED | {"sliding_window": None}),
    Architecture(
        "StarCoder2 with a sliding window", "Starcoder2Config", GROUPED | {"sliding_window": WINDOW}
    ),
    Architecture("Granite", "GraniteConfig", GROUPED),
    Architecture("GLM-4", "Glm4Config", GROUPED),
    Architecture("EXAONE 4", "Exaone4Config", GROUPED | SLIDING),
    Architecture("Persimmon", "PersimmonConfig", SHAPE),
    Architecture("CTRL", "CTRLConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64}),
    Architecture(
        "Mixtral", "MixtralConfig", GROUPED | {"num_local_experts": 4, "sliding_window": None}
    ),
    Architecture(
        "Qwen2-MoE", "Qwen2MoeConfig", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 32}
    ),
    Architecture("Qwen3-MoE", "Qwen3MoeConfig", GROUPED | EXPERTS),
    Architecture(
        "OLMoE",
        "OlmoeConfig",
        GROUPED | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    Architecture("GraniteMoE", "GraniteMoeConfig", GROUPED | {"num_local_experts": 4}),
    Architecture(
        "GPT-OSS",
        "GptOssConfig",
        GROUPED | SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
]

OWN_ATTENTION = "attention of its own"
ALIBI = "positions as a bias on scores"
STATES = "recurrent states; prompts in one piece"

SEQUENTIAL = [
    Architecture("StableLM", "StableLmConfig", GROUPED | {"head_dim": 8}, why=OWN_ATTENTION),
    Architecture("Nemotron", "NemotronConfig", GROUPED, why=OWN_ATTENTION),
    Architecture("Falcon", "FalconConfig", SHAPE, why=OWN_ATTENTION),
    Architecture("Falcon with ALiBi", "FalconConfig", SHAPE | {"alibi": True}, why=ALIBI),
    Architecture("BLOOM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, why=ALIBI),
    Architecture(
        "MPT",
        "MptConfig",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
        why=ALIBI,
    ),
    Architecture("GPT-J", "GPTJConfig", SMALL_GPT | {"rotary_dim": 4}, why=OWN_ATTENTION),
    Architecture(
        "GPT-Neo",
        "GPTNeoConfig",
        SHAPE
        | {
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
        why=OWN_ATTENTION,
    ),
    Architecture("CodeGen", "CodeGenConfig", SMALL_GPT | {"rotary_dim": 4}, why=OWN_ATTENTION),
    Architecture(
        "XGLM",
        "XGLMConfig",
        {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
        why=OWN_ATTENTION,
    ),
    Architecture(
        "Llama 4 (text)",
        "Llama4TextConfig",
        GROUPED
        | {"intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": WINDOW}
        | {"layer_types": ["chunked_attention", "full_attention"]},
        why="attention in chunks",
    ),
    Architecture(
        "DeepSeek-V3",
        "DeepseekV3Config",
        SHAPE
        | {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
        }
        | {
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
        }
        | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
        why="keys and values of different sizes",
    ),
    Architecture(
        "Mamba",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        why=STATES,
    ),
    Architecture(
        "Mamba 2",
        "Mamba2Config",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16}
        | {"n_groups": 1, "chunk_size": 8},
        why=STATES,
    ),
    Architecture(
        "RecurrentGemma",
        "RecurrentGemmaConfig",
        SHAPE
        | {
            "lru_width": 32,
            "attention_window_size": WINDOW,
            "block_types": ["recurrent", "attention"],
        },
        why="states inside the model's layers; everything is read again for each token",
    ),
    Architecture(
        "Jamba",
        "JambaConfig",
        GROUPED
        | {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2, "mamba_d_state": 8},
        why=STATES,
    ),
    Architecture(
        "Falcon H1",
        "FalconH1Config",
        GROUPED
        | {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
        why=STATES,
    ),
    Architecture(
        "Bamba",
        "BambaConfig",
        GROUPED
        | {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
        | {"mamba_chunk_size": 8},
        why=STATES,
    ),
    Architecture(
        "LFM2", "Lfm2Config", GROUPED | {"layer_types": ["conv", "full_attention"]}, why=STATES
    ),
    Architecture(
        "Qwen3-Next",
        "Qwen3NextConfig",
        GROUPED
        | EXPERTS
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "shared_expert_intermediate_size": 32,
        }
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
        | {"linear_num_value_heads": 4},
        why=STATES,
    ),
    Architecture(
        "RWKV",
        "RwkvConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
        why=STATES,
    ),
    Architecture(
        "GPT", "OpenAIGPTConfig", SMALL_GPT, why="no cache; everything is read again for each token"
    ),
]

ARCHITECTURES = BATCHED + SEQUENTIAL


def table() -> str:
    """The table of docs/operations.md."""
    batched = [a.name for a in BATCHED]
    sequential = [(a.name, a.why) for a in SEQUENTIAL]
    reasons = dict.fromkeys(why for _, why in sequential)
    rows = [
        ("batched", "", batched),
        *(("slow path", why, [n for n, w in sequential if w == why]) for why in reasons),
    ]
    lines = [f"| {kind} | {why} | {', '.join(names)} |" for kind, why, names in rows]
    return "\n".join(["| Served | Why | Architectures |", "| --- | --- | --- |", *lines])
