"""Layers in one call compute what they compute one by one, to the last bit,
and step aside for adapters."""

import logging
from copy import deepcopy
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from llm_runtime.compute import native  # noqa: E402
from llm_runtime.compute.cache import CacheShape, KvCache, LayerShape  # noqa: E402
from llm_runtime.compute.decoder import join_layers  # noqa: E402
from llm_runtime.compute.fused import fuse, norm  # noqa: E402
from llm_runtime.compute.int8 import quantize_weight  # noqa: E402
from llm_runtime.compute.logits.sampler import Sampler  # noqa: E402
from llm_runtime.compute.lora import Adapter, AdapterSet, LoraWeights  # noqa: E402
from llm_runtime.compute.products import BlockLinear  # noqa: E402
from llm_runtime.compute.runner import TransformersRunner  # noqa: E402
from llm_runtime.engine.blocks import BlockPool  # noqa: E402
from llm_runtime.engine.scheduler import Batch, Span  # noqa: E402
from unit.runtime.engine.fakes import sequence  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(native.library() is None, reason="no compiled kernels: apt-get install g++"),
]
SHAPE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 80, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip
LAYERED: dict[str, Any] = {
    "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=8),
    "qwen2": Qwen2Config(**{**SHAPE, "hidden_size": 64}, **LAYERED),
    "qwen3": Qwen3Config(**SHAPE, **LAYERED),
}
STEPS = (
    ((0, 21), (0, 3), (0, 40)),  # (tokens before, tokens now) of each sequence
    ((21, 1), (3, 1), (40, 1)),
    ((22, 1), (4, 30)),
    ((23, 1),),
)
"""Prompts, single tokens, both, and one sequence alone."""


def model(config: Any, weights: str, dtype: Any = torch.float32) -> Any:
    """With linear layers in blocks, as `weights` says."""
    torch.manual_seed(1)
    made = AutoModelForCausalLM.from_config(deepcopy(config)).to(dtype).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.normal_(mean=0.5)
    for parent in list(made.model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, blocks(child, weights))
    return made


def blocks(linear: Any, weights: str) -> BlockLinear:
    if weights == "int8":
        return BlockLinear(linear, *quantize_weight(linear.weight))
    return BlockLinear(linear, linear.weight.to(getattr(torch, weights)))


class World:
    """A model behind the runner, with three sequences whose tokens are put through it in STEPS."""

    def __init__(self, made: Any, cached: Any = None) -> None:
        at = made.model.layers[0].self_attn
        heads = at.k_proj.out_features // at.head_dim
        layers = (LayerShape(heads, at.head_dim, at.head_dim),) * len(made.model.layers)
        self.pool = BlockPool(32)
        cache = KvCache(CacheShape(layers, cached or made.dtype), self.pool.size, "cpu")
        self.adapters = AdapterSet(made, lambda *_: pytest.fail("no adapter is read"))
        self.runner = TransformersRunner(made, cache, Sampler(), self.adapters)

    def logits(self, adapter: str | None = None) -> list[Any]:
        """Logits of each step; all sequences use `adapter`."""
        sequences = [sequence(text) for text in ("a" * 60, "bcd" * 20, "ef" * 30)]
        for one in sequences:
            one.adapter = adapter or one.adapter
            one.blocks = self.pool.take(60, self.pool.new_root()) or pytest.fail("no blocks")
        found = []
        with torch.inference_mode():
            for step in STEPS:
                spans = [
                    Span(one, start, count, samples=True)
                    for one, (start, count) in zip(sequences, step, strict=False)
                ]
                spans.sort(key=lambda span: span.count > 1)
                found.append(self.runner.logits(Batch(tuple(spans))).clone())
        for one in sequences:
            self.pool.give_back(one.blocks)
        return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.float32),
        ("int8", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("int8", torch.bfloat16),
    ],
    ids=lambda part: str(part).removeprefix("torch."),
)
def test_layers_in_one_call_give_the_same_logits(name: str, weights: str, dtype: Any) -> None:
    apart, joined = (model(CONFIGS[name], weights, dtype) for _ in range(2))
    fuse(apart)
    fuse(joined)
    assert join_layers(joined)
    assert all(map(torch.equal, World(joined).logits(), World(apart).logits()))


def test_a_narrower_cache_gives_the_same_logits_in_one_call() -> None:
    apart, joined = (model(CONFIGS["qwen3"], "bfloat16") for _ in range(2))
    fuse(apart)
    fuse(joined)
    assert join_layers(joined)
    logits = World(joined, torch.bfloat16).logits()
    assert all(map(torch.equal, logits, World(apart, torch.bfloat16).logits()))
    whole = model(CONFIGS["qwen3"], "bfloat16")
    fuse(whole)
    for rounded, exact in zip(logits, World(whole).logits(), strict=True):
        assert 0 < (rounded - exact).norm() / exact.norm() < 0.02


def test_an_adapter_changes_its_rows_and_no_step_without_it() -> None:
    made = model(CONFIGS["llama"], "float32")
    fuse(made)
    assert join_layers(made)
    world = World(made)
    plain = world.logits()
    shape = world.adapters.shapes["model.layers.1.mlp.up_proj"]
    weights = LoraWeights(torch.randn(2, shape.inputs), torch.randn(shape.outputs, 2))
    world.adapters.install("lora", Adapter(2, {"model.layers.1.mlp.up_proj": weights}))
    assert all(map(torch.equal, world.logits(), plain))
    assert not any(map(torch.allclose, world.logits("lora"), plain))


def fuse_with_epsilon(module: Any, epsilon: float) -> None:
    module.forward = partial(norm, module, epsilon, 0.0)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda layer: setattr(layer.mlp, "down_proj", torch.nn.Linear(112, 80)), "blocks"),
        (lambda layer: fuse_with_epsilon(layer.input_layernorm, 0.5), "epsilon"),
        (lambda layer: vars(layer.self_attn).pop("forward"), "not fused"),
    ],
    ids=["a plain linear layer", "another epsilon", "attention of its own"],
)
def test_layers_with_a_part_that_is_no_kernel_run_one_by_one(
    spoil: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = model(CONFIGS["llama"], "float32")
    fuse(made)
    spoil(made.model.layers[1])
    with caplog.at_level(logging.INFO):
        assert not join_layers(made)
    assert why in caplog.records[-1].__dict__["reason"]
    assert "forward" not in vars(made.model)


def test_a_model_of_another_class_is_left_alone() -> None:
    made = model(Gemma2Config(**SHAPE), "float32")
    fuse(made)
    assert not join_layers(made)
