"""The search for told secrets finds each form of one, names it, and shows it nowhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from secrets_told import Forms, Leak, search, values

SECRET = 'kn/öwn+"only= to us'
NAME = "the password"


def found(folder: Path, text: str, name: str = "some.log") -> list[Leak]:
    file = folder / name
    file.write_text(text)
    leaks, summary = search(Forms.of({SECRET: NAME, "short": "a word"}), {"logs": [file]})
    assert "1 secrets" in summary
    assert summary.endswith("left out: a word")
    return leaks


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        json.dumps({"a": SECRET}),
        f"http://u:{quote(SECRET, safe='')}@host",
        *(base64.b64encode(f"{before}{SECRET}{after}".encode()).decode() for before in ("", "a", "ab") for after in
          ("", "a", "ab")),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
    ],
)  # fmt: skip
def test_each_form_of_a_secret_is_found_and_not_shown(tmp_path: Path, written: str) -> None:
    (leak,) = found(tmp_path, f"a line\nanother with {written} in it\nshort\n")
    assert leak.secret == NAME
    assert str(tmp_path / "some.log") in str(leak)
    assert SECRET not in str(leak)
    assert written not in str(leak)


def test_the_object_and_the_field_are_named(tmp_path: Path) -> None:
    told = {
        "kind": "Pod",
        "metadata": {"namespace": "a", "name": "b"},
        "status": {"conditions": [{"message": SECRET}]},
    }
    (leak,) = found(tmp_path, f"{json.dumps({'object': told})}\n" * 3, "Pod.jsonl")
    assert leak.place == "Pod a/b status.conditions.0.message"


def test_what_tells_nothing_is_left_alone(tmp_path: Path) -> None:
    assert not found(tmp_path, "Secret the password was read, short and kn/öwn\n")


def secret(**data: str) -> dict[str, object]:
    encoded = {
        name.replace("_", "."): base64.b64encode(text.encode()).decode()
        for name, text in data.items()
    }
    return {"metadata": {"namespace": "a", "name": "b"}, "data": encoded}


def test_secrets_are_taken_apart() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nabcdefghijklmnop\n-----END PRIVATE KEY-----\n"
    assert [
        value for value, _ in values(secret(tls_key=key, tls_crt=key, username="somebody else"))
    ] == ["abcdefghijklmnop"]
    url = "postgresql://us:the-password@host/db"
    assert [*values(secret(url=url))] == [
        (url, "Secret a/b, url"),
        ("the-password", "Secret a/b, url"),
    ]
    file = {"salt": "public", "keys": [{"name": "team", "digest": "0123456789abcdef"}]}
    assert [value for value, _ in values(secret(keys_json=json.dumps(file)))] == [
        "0123456789abcdef"
    ]
