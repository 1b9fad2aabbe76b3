"""Random bases, and random adapters for them made and saved by PEFT: what ours is compared with."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unit.runtime import tiny_model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_SEVEN = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def llama(folder: Path, seed: int = 0) -> Path:
    return tiny_model.make(folder, seed)


def gpt2(folder: Path) -> Path:
    """Its linears are Conv1D, whose weights lie the other way round."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tiny_model.make_tokenizer(folder)
    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=260, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2,
        eos_token_id=256, bos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    GPT2LMHeadModel(settings).save_pretrained(folder)
    return folder


def load(folder: Path, dtype: Any = None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32)
    return model.eval().requires_grad_(False)


def save_adapter(
    base: Path, folder: Path, seed: int, target_modules: Any = ALL_SEVEN, r: int = 8, **options: Any
) -> Path:
    """An adapter whose answers differ plainly from the base's, in PEFT's own files."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(
        target_modules=targets, r=r, lora_alpha=2 * r, task_type="CAUSAL_LM", **options
    )
    model = get_peft_model(load(base), config)
    chance = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0.0, 0.15, generator=chance)
    model.save_pretrained(folder)
    return folder


def peft_model(base: Path, adapters: Iterable[tuple[str, Path]], dtype: Any = None) -> Any:
    """PEFT's own model with all `adapters`; `set_adapter` and `disable_adapter` choose."""
    from peft import PeftModel

    (name, folder), *others = adapters
    model = PeftModel.from_pretrained(load(base, dtype), folder, adapter_name=name)
    for name, folder in others:
        model.load_adapter(folder, adapter_name=name)
    return model.eval()
