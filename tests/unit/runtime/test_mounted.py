"""A mounted file gives each of its versions once, and none is lost to a read that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_runtime.common.mounted import MountedFile


def test_each_version_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b"1")
    file = MountedFile(path)
    assert [file.news(), file.news()] == [b"1", None]
    path.write_bytes(b"12")
    assert [file.news(), file.news()] == [b"12", None]


def test_a_version_whose_read_failed_is_given_when_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b"1")
    file = MountedFile(path)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", no_more_handles)
        assert [file.news(), file.news()] == [None, None]
    assert caplog.text.count("can't be read") == 1
    assert file.news() == b"1"


def test_a_file_that_comes_back_as_it_was_is_not_new_and_its_next_loss_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    away = tmp_path / "away"
    path.write_bytes(b"1")
    file = MountedFile(path)
    assert file.news() == b"1"
    for _ in range(2):
        path.rename(away)
        assert file.news() is None
        away.rename(path)
        assert file.news() is None
    assert caplog.text.count("can't be read") == 2


def test_an_optional_file_may_be_absent_but_not_unreadable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = MountedFile(tmp_path / "adapters.json", optional=True)
    assert file.news() is None
    assert caplog.text == ""
    (tmp_path / "adapters.json").mkdir()
    assert file.news() is None
    assert "can't be read" in caplog.text


def no_more_handles(path: Path) -> bytes:
    raise OSError(24, "Too many open files")
