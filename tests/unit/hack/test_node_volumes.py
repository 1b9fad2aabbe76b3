"""Volumes are swapped whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.resolve import ConfigError
from node.volumes import select, write_atomically


def test_new_content_replaces_the_old_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_atomically(tmp_path, {"a": (b"1", 0o644), "deep/b": (b"2", 0o600)})
    before = (tmp_path / "..data").resolve()
    assert (tmp_path / "deep" / "b").read_bytes() == b"2"
    assert (tmp_path / "deep" / "b").stat().st_mode & 0o777 == 0o600
    write_atomically(tmp_path, {"a": (b"3", 0o644)})
    assert (tmp_path / "a").read_bytes() == b"3"
    assert not before.exists()
    assert sorted(each.name for each in tmp_path.iterdir() if not each.name.startswith("..20")) == [
        "..data",
        "a",
    ]


def test_same_content_is_not_touched(tmp_path: Path) -> None:
    write_atomically(tmp_path, {"a": (b"1", 0o644)})
    before = (tmp_path / "..data").readlink()
    write_atomically(tmp_path, {"a": (b"1", 0o644)})
    assert (tmp_path / "..data").readlink() == before


def test_items_choose_keys_and_name_paths() -> None:
    source = {"items": [{"key": "a", "path": "x/y", "mode": 0o400}]}
    assert select({"a": b"1", "b": b"2"}, source, 0o644, "configMap 'c'") == {"x/y": (b"1", 0o400)}


def test_missing_key_is_an_error_unless_optional() -> None:
    source = {"items": [{"key": "a", "path": "a"}]}
    with pytest.raises(ConfigError, match="non-existent key: a"):
        select({}, source, 0o644, "configMap 'c'")
    assert select({}, {**source, "optional": True}, 0o644, "configMap 'c'") == {}
