"""The compiled kernel and torch's way give the same attention, for every rule a layer may have."""

import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from llm_runtime.compute import native  # noqa: E402
from llm_runtime.compute.attention import AttentionMetadata, Rule, attend_gathered, attend_native  # noqa: E402
from llm_runtime.compute.cache import CacheShape, KvCache, LayerShape  # noqa: E402
from llm_runtime.engine.blocks import BLOCK_TOKENS, BlockPool  # noqa: E402
from llm_runtime.engine.scheduler import Span  # noqa: E402
from unit.runtime.engine.fakes import sequence  # noqa: E402

needs_kernel = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernels: apt-get install g++"
)
MIXED = ((0, 1), (5, 1), (31, 1), (32, 1), (200, 1), (0, 40), (100, 33), (64, 2))
"""(start, count) of spans: first and later tokens,
at borders of blocks, whole prompts and chunks."""


def attended(
    way: Any,
    heads: int,
    kv_heads: int,
    size: int,
    dtype: Any,
    rule: Rule,
    spans: Any = MIXED,
    cached: Any = None,
) -> Any:
    """Output [tokens, heads, size] of one layer whose cache already holds what lies before each
    span."""
    torch.manual_seed(7)
    pool = BlockPool(64)
    cache = KvCache(
        CacheShape((LayerShape(kv_heads, size, size),), cached or dtype), pool.size, "cpu"
    )
    cache.keys[0].normal_()
    cache.values[0].normal_()
    numbers = list(range(64))
    random.Random(3).shuffle(numbers)
    taken = []
    for start, count in spans:
        one = sequence("p" * (start + count))
        need = pool.needed(start + count)
        one.blocks.numbers = numbers[:need]
        numbers = numbers[need:]
        taken.append(Span(one, start, count, samples=True))
    step = AttentionMetadata(tuple(taken), cache, "cpu")
    tokens = sum(count for _, count in spans)
    # As models hand them over: heads first, but stored tokens first.
    query, key, value = (
        torch.randn(tokens, n, size).to(dtype).transpose(0, 1) for n in (heads, kv_heads, kv_heads)
    )
    out = way(step, 0, rule, query, key, value)
    return out.float(), cache.keys[0].float(), cache.values[0].float()


@needs_kernel
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(9, 3, 64), (8, 8, 32), (14, 2, 64), (4, 1, 128), (4, 2, 80)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_and_torch_agree(heads: int, kv_heads: int, size: int, dtype: Any) -> None:
    shape = (heads, kv_heads, size, dtype, Rule(size**-0.5))
    for ours, theirs in zip(
        attended(attend_native, *shape), attended(attend_gathered, *shape), strict=True
    ):
        torch.testing.assert_close(
            ours, theirs, atol=2e-2 if dtype is torch.bfloat16 else 2e-6, rtol=1e-2
        )


@needs_kernel
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 2, 80)])
@pytest.mark.parametrize("rule", [Rule(0.2), Rule(0.3, 33, 2.0)])
def test_a_cache_may_be_narrower_than_the_model(
    heads: int, kv_heads: int, size: int, rule: Rule
) -> None:
    shape = (heads, kv_heads, size, torch.float32, rule, MIXED, torch.bfloat16)
    for ours, theirs in zip(
        attended(attend_native, *shape), attended(attend_gathered, *shape), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@needs_kernel
@pytest.mark.parametrize(
    "rule",
    [
        Rule(0.2, window=1),
        Rule(0.2, window=17),
        Rule(0.2, window=64),
        Rule(0.3, softcap=5.0),
        Rule(0.3, 33, 2.0),
    ],
    ids=str,
)
def test_windows_and_soft_caps_agree(rule: Rule) -> None:
    ours, theirs = (
        attended(way, 6, 2, 64, torch.float32, rule)[0] for way in (attend_native, attend_gathered)
    )
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4)


@needs_kernel
def test_sinks_agree() -> None:
    rule = Rule(0.2, window=40, sinks=torch.tensor([3.0, -1.0, 0.5, 9.0]))
    ours, theirs = (
        attended(way, 4, 2, 64, torch.float32, rule)[0] for way in (attend_native, attend_gathered)
    )
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4)


@needs_kernel
def test_large_scores_do_not_overflow() -> None:
    ours, theirs = (
        attended(way, 4, 2, 64, torch.float32, Rule(50.0))[0]
        for way in (attend_native, attend_gathered)
    )
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@needs_kernel
def test_a_token_far_back_in_a_long_text_is_seen() -> None:
    spans = ((1500, 1), (0, 100))
    ours, theirs = (
        attended(way, 4, 2, 64, torch.float32, Rule(0.125), spans)[0]
        for way in (attend_native, attend_gathered)
    )
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4)


def test_without_a_compiler_torch_takes_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setattr(native, "BUILT", tmp_path)
    native.library.cache_clear()
    try:
        assert native.library() is None
    finally:
        native.library.cache_clear()


@needs_kernel
def test_an_image_carries_kernels_and_needs_no_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "BUILT", tmp_path / "built")
    native.main()
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    native.library.cache_clear()
    try:
        built = native.library()
        assert built is not None
        assert built.llm_attention_block() == BLOCK_TOKENS
        assert str(tmp_path) in str(built._name)
    finally:
        native.library.cache_clear()


def test_a_user_without_a_name_and_a_home_gets_a_scratch_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Before: RuntimeError, "Could not determine home directory", and no model.
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert native._cache_folder().parent == tmp_path
