"""Random LoRA adapters in PEFT's format: rank 8 on all seven linear layers of a Llama."""

import json
from pathlib import Path

from bench.models import FOLDER

RANK = 8
COUNT = 8
MODULES = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def folders(model: Path) -> dict[str, Path]:
    """Eight adapters for the model in `model`, by name. Created if they don't exist."""
    base = FOLDER / f"{model.name}-adapters"
    made = {f"a{index}": base / f"a{index}" for index in range(COUNT)}
    for seed, folder in enumerate(made.values()):
        if not (folder / "adapter_config.json").is_file():
            make(model, folder, seed)
    return made


def make(model: Path, folder: Path, seed: int) -> None:
    """Write one adapter whose effect on the answers is small, but not zero."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tensors = {}
    for name, (rows, columns) in shapes(json.loads((model / "config.json").read_text())).items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = (
            torch.randn(RANK, columns) / columns**0.5
        )
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, RANK) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "r": RANK, "lora_alpha": 16,
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "target_modules": [name for names in MODULES.values() for name in names],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2))


def shapes(config: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Rows and columns of every linear layer that gets an adapter, by the name of its module."""
    hidden = config["hidden_size"]
    inner = config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    keys = head * config["num_key_value_heads"]
    sizes = {
        "q_proj": (head * heads, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden),
        "o_proj": (hidden, head * heads), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }  # fmt: skip
    return {
        f"model.layers.{layer}.{part}.{name}": sizes[name]
        for layer in range(config["num_hidden_layers"])
        for part, names in MODULES.items()
        for name in names
    }
