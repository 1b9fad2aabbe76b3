"""How much memory something took at most."""

import time
from pathlib import Path

from llm_runtime.loading.peak import INTERVAL_SECONDS, PeakMemory, own_bytes


def test_what_was_given_back_counts_in_the_peak() -> None:
    with PeakMemory() as peak:
        taken = bytearray(64 << 20)
        taken[::4096] = b"x" * len(taken[::4096])
        time.sleep(3 * INTERVAL_SECONDS)
        del taken
    assert peak.peak_bytes - peak.before_bytes >= 60 << 20


def test_pages_of_files_do_not_count(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(
        "Name:\tx\nVmHWM:\t900 kB\nRssAnon:\t100 kB\nRssFile:\t700 kB\nRssShmem:\t20 kB\n"
    )
    assert own_bytes(status) == 120 * 1024
    assert own_bytes(tmp_path / "missing") == 0
