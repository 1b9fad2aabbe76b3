"""How far the pods' downloads are, in words."""

from collections.abc import Iterable, Mapping

from llm_operator.state import Download, Figures, Manifest


def progress(pods: Iterable[Manifest], figures: Mapping[str, Figures], wanted: int) -> str:
    """`downloading 63 %, 41 MB/s, 9 s left`: the slowest of one revision's pods.
    Empty: none of them downloads."""
    found = [
        known.download
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        and (known := figures.get(pod["metadata"]["name"])) is not None
        and known.download is not None
    ]
    if not found:
        return ""
    message = f"downloading {_words(max(found, key=_seconds_left))}"
    return (
        f"{message} (the slowest; {len(found)} of {wanted} pods download)"
        if len(found) > 1
        else message
    )


def _words(download: Download) -> str:
    percent = min(100, int(100 * download.done_bytes / download.total_bytes))
    rate = download.bytes_per_second / 1e6
    parts = [f"{percent} %", f"{rate:.0f} MB/s" if rate >= 10 else f"{rate:.1f} MB/s"]
    left = _seconds_left(download)
    if 0 < left < float("inf"):
        parts.append(f"{_duration(left)} left")
    return ", ".join(parts)


def _seconds_left(download: Download) -> float:
    left = max(0.0, download.total_bytes - download.done_bytes)
    if not left:
        return 0.0
    return left / download.bytes_per_second if download.bytes_per_second > 0 else float("inf")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
