"""What the log says of a download on its way."""

import pytest

from llm_runtime.fetching.progress import LogProgress, progress_bar


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_five_seconds_with_rate_and_time_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    progress = LogProgress(clock=clock)
    with caplog.at_level("INFO"):
        for second in range(0, 21):
            progress(second * 5_000_000, 100_000_000)
            clock.now += 1
    lines = [vars(record) for record in caplog.records]
    assert [line["percent"] for line in lines] == [25, 50, 75, 100]
    assert {line["megabytes_per_second"] for line in lines} == {5.0}
    assert [line["seconds_left"] for line in lines] == [15, 10, 5, 0]


def test_what_was_there_before_is_not_counted_as_speed(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = LogProgress(clock=clock)
    with caplog.at_level("INFO"):
        progress(60_000_000, 100_000_000)
        clock.now += 5
        progress(70_000_000, 100_000_000)
        clock.now += 20
        progress(70_000_000, 100_000_000)
    assert [vars(record)["megabytes_per_second"] for record in caplog.records] == [2.0, 0.0]
    assert [vars(record)["seconds_left"] for record in caplog.records] == [15, None]


def test_a_quick_download_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    progress = LogProgress()
    with caplog.at_level("INFO"):
        for done in range(101):
            progress(done, 100)
        progress(100, 100)
    assert len(caplog.records) == 1


def test_a_bar_comes_with_the_first_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # As on a terminal.
    with progress_bar("model"):
        pass
    assert "bytes" not in capsys.readouterr().err
    with progress_bar("model") as progress:
        progress(1, 2)
    assert "1/2 bytes" in capsys.readouterr().err
