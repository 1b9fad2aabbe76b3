"""Mount paths become real paths, and nothing else changes."""

from __future__ import annotations

import pytest

from node.paths import rewrite

MOUNTS = {"/models": "/real/m", "/models/cache": "/real/c", "/etc/llm/": "/real/etc"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/models", "/real/m"),
        ("/models/x/y", "/real/m/x/y"),
        ("/models/cache/z", "/real/c/z"),
        ("/etc/llm/config.yaml", "/real/etc/config.yaml"),
        ("/modelsx", "/modelsx"),
        ("--model=/models/x", "--model=/real/m/x"),
        ("--model-path=file:///models/x", "--model-path=file:///real/m/x"),
        ("file:///models/x", "file:///real/m/x"),
        ("sqlite:////models/usage.db", "sqlite:////real/m/usage.db"),
        ("http://host/models", "http://host/models"),
        ("cat /models/x", "cat /models/x"),
        ("", ""),
    ],
)
def test_rewrite(value: str, expected: str) -> None:
    assert rewrite(value, MOUNTS) == expected
