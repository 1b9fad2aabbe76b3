"""Fused operations compute what the modules computed, and are taken only where they do."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config  # noqa: E402

from llm_runtime.compute import native  # noqa: E402
from llm_runtime.compute.fused import fuse  # noqa: E402

needs_kernel = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernels: apt-get install g++"
)
SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip


def model(config: Any, dtype: Any = torch.float32) -> Any:
    torch.manual_seed(1)
    made = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            parameter.data.normal_(mean=0.5)
    return made


def hidden(dtype: Any = torch.float32) -> Any:
    return torch.randn(1, 7, 48, generator=torch.Generator().manual_seed(2)).to(dtype)


@needs_kernel
@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**SHAPE), Gemma2Config(**SHAPE), Qwen3Config(**SHAPE)],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_gates_compute_the_same(config: Any, dtype: Any) -> None:
    made = model(config, dtype)
    layer = made.model.layers[0]
    inputs = hidden(dtype)
    with torch.inference_mode():
        expected = [layer.input_layernorm(inputs), layer.mlp(inputs)]
        done = fuse(made)
        actual = [layer.input_layernorm(inputs), layer.mlp(inputs)]
    assert done["norms"] >= 5
    # Gemma's gate is a GELU, which is left as it is.
    assert done["gates"] == (0 if config.model_type == "gemma2" else 2)
    for ours, theirs in zip(actual, expected, strict=True):
        difference = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert difference < (2e-2 if dtype is torch.bfloat16 else 1e-5)


@needs_kernel
def test_a_fused_model_still_runs_as_transformers_calls_it() -> None:
    made = model(LlamaConfig(**SHAPE))
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        expected = made(ids).logits
        assert fuse(made)["attentions"] == 2
        torch.testing.assert_close(made(ids).logits, expected, rtol=1e-4, atol=1e-4)


@needs_kernel
def test_a_model_without_such_modules_is_left_alone() -> None:
    made = model(GPT2Config(vocab_size=64, n_embd=48, n_layer=1, n_head=4))
    assert sum(fuse(made).values()) == 0


@needs_kernel
def test_a_norm_that_does_something_else_is_left_alone() -> None:
    made = model(LlamaConfig(**SHAPE))

    class OddRMSNorm(torch.nn.Module):  # type: ignore[misc, name-defined]
        weight = made.model.norm.weight
        variance_epsilon = 1e-6

        def forward(self, states: Any) -> Any:
            return states * 2

    made.model.norm = OddRMSNorm()
    fuse(made)
    assert torch.equal(made.model.norm(torch.ones(1, 2, 48)), torch.full((1, 2, 48), 2.0))
