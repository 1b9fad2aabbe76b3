"""What comes over HTTP as a webhook:
who is believed, what it sets off, and what nobody should get."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector, web

from llm_operator import webhooks
from llm_operator.settings import ConnectionSettings
from waiting import until

NOW = 1_800_000_000.0
SECRET = "whsec-1"
BODY = json.dumps(
    {"entity": "model_version_alias", "action": "created", "data": {"name": "bot"}}
).encode()


class Known:
    """The connections of a configuration file."""

    def __init__(self, folder: Path) -> None:
        (folder / "webhookSecret").write_text(f"whsec-2\n{SECRET}\n")
        (folder / "other").mkdir(exist_ok=True)
        (folder / "other" / "webhookSecret").write_text("whsec-of-another\n")
        uri = "http://mlflow:5000"
        self.known = {
            "default": ConnectionSettings(tracking_uri=uri, credentials_folder=folder),
            "quiet": ConnectionSettings(tracking_uri=uri),
            "other": ConnectionSettings(tracking_uri=uri, credentials_folder=folder / "other"),
            "twin": ConnectionSettings(tracking_uri=uri, credentials_folder=folder),
        }

    def current(self) -> dict[str, ConnectionSettings]:
        return self.known


class Sender:
    """Posts to a receiver as MLflow does, unless told to do it wrong."""

    def __init__(self, uri: str, session: ClientSession, receiver: webhooks.Receiver) -> None:
        self.uri = uri
        self.session = session
        self.receiver = receiver
        self.woken: list[tuple[str, str | None]] = []

    async def post(
        self,
        body: bytes = BODY,
        to: str = "default",
        delivery: str = "d-1",
        at: str = f"{NOW:.0f}",
        secret: str = SECRET,
        **headers: str,
    ) -> tuple[int, str]:
        signed = f"{delivery}.{at}.".encode() + body
        signature = base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()
        mlflow = {
            webhooks.ID: delivery,
            webhooks.TIMESTAMP: at,
            webhooks.SIGNATURE: f"v1,{signature}",
        }
        url = f"{self.uri}/webhooks/mlflow/{to}"
        async with self.session.post(url, data=body, headers=mlflow | headers) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def sender(tmp_path: Path) -> AsyncIterator[Sender]:
    """A leading receiver on loopback."""
    receiver = webhooks.Receiver(Known(tmp_path), lambda: NOW)
    runner = await webhooks.serve(receiver, "127.0.0.1", 0)
    assert isinstance(runner, web.AppRunner)
    host, port = runner.addresses[0][:2]
    async with ClientSession(connector=TCPConnector(), trust_env=False) as session:
        found = Sender(f"http://{host}:{port}", session, receiver)
        receiver.wake = lambda connection, model: found.woken.append((connection, model))
        yield found
    await runner.cleanup()


async def test_a_signed_delivery_wakes_the_poll_with_the_models_name(sender: Sender) -> None:
    assert (await sender.post())[0] == 202
    assert sender.woken == [("default", "bot")]


async def test_either_of_two_secrets_signs_while_one_takes_the_others_place(sender: Sender) -> None:
    assert (await sender.post(secret="whsec-2"))[0] == 202


async def test_a_repeated_delivery_is_taken_once(sender: Sender) -> None:
    for _ in range(3):
        assert (await sender.post())[0] == 202
    assert len(sender.woken) == 1


async def test_a_delivery_is_taken_once_also_by_a_connection_with_the_same_secret(
    sender: Sender,
) -> None:
    assert (await sender.post())[0] == 202
    assert (await sender.post(to="twin"))[0] == 202
    assert sender.woken == [("default", "bot")]
    # MLflow gives each webhook's delivery an id of its own.
    assert (await sender.post(to="twin", delivery="d-2"))[0] == 202
    assert sender.woken[1:] == [("twin", "bot")]


async def test_bodies_that_never_end_are_few_and_one_that_breaks_off_is_no_error_of_ours(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = sender.uri.removeprefix("http://").split(":")
    head = b"POST /webhooks/mlflow/default HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    open_ones = []
    for _ in range(webhooks.BODIES):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + b"{")
        open_ones.append(writer)
    await until(lambda: sender.receiver._reading == webhooks.BODIES)
    assert (await sender.post())[0] == 503
    for writer in open_ones:
        writer.close()
    await until(lambda: not sender.receiver._reading)
    assert (await sender.post())[0] == 202
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("status", "wrong"),
    [
        (401, {"secret": "guessed"}),
        (401, {"at": f"{NOW - 301:.0f}"}),
        (401, {"at": f"{NOW + 301:.0f}"}),
        (401, {"at": "soon"}),
        (401, {"at": "²"}),
        (401, {webhooks.SIGNATURE: ""}),
        (401, {webhooks.SIGNATURE: "v1,\udcffé"}),
        (401, {webhooks.ID: "d-2"}),
        (401, {"to": "other"}),  # What one receiver was sent says nothing to another.
        (404, {"to": "unheard-of"}),
        (404, {"to": "quiet"}),
        (413, {"body": b"x" * ((1 << 20) + 1)}),
    ],
)  # fmt: skip
async def test_who_can_not_be_believed_wakes_nobody(
    sender: Sender, status: int, wrong: dict[str, str]
) -> None:
    assert (await sender.post(**wrong))[0] == status  # type: ignore[arg-type]
    assert sender.woken == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"data": {"name": 3}}', b"\xff", b'{"data": null}']
)
async def test_a_signed_body_that_names_no_model_wakes_for_the_whole_server(
    sender: Sender, body: bytes
) -> None:
    assert (await sender.post(body))[0] == 202
    assert sender.woken == [("default", None)]


async def test_a_stand_by_asks_to_send_it_again_and_then_takes_the_same_delivery(
    sender: Sender,
) -> None:
    leading = sender.receiver.wake
    sender.receiver.wake = None
    assert (await sender.post())[0] == 503
    sender.receiver.wake = leading
    assert (await sender.post())[0] == 202
    assert sender.woken == [("default", "bot")]


async def test_a_stand_by_hands_a_delivery_on_to_the_leader(sender: Sender, tmp_path: Path) -> None:
    leader = sender.uri
    runner = await webhooks.serve(
        webhooks.Receiver(Known(tmp_path), lambda: NOW, lambda: leader), "127.0.0.1", 0
    )
    sender.uri = "http://{}:{}".format(*runner.addresses[0][:2])
    assert (await sender.post())[0] == 202
    assert sender.woken == [("default", "bot")]
    assert (await sender.post(secret="guessed"))[0] == 401
    sender.receiver.wake = None
    assert (await sender.post(delivery="d-2"))[0] == 503
    leader = "http://127.0.0.1:9"
    assert (await sender.post(delivery="d-3"))[0] == 503
    await runner.cleanup()


async def test_two_stand_bys_that_take_each_other_for_the_leader_do_not_go_round(
    sender: Sender,
) -> None:
    sender.receiver.wake = None
    sender.receiver._leader = lambda: sender.uri
    assert (await sender.post())[0] == 503


async def test_only_so_many_deliveries_are_remembered(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "IDS_KEPT", 3)
    for number in range(9):
        await sender.post(delivery=f"d-{number}")
    assert len(sender.receiver._seen) == 3
