"""MLflow's registry webhooks.
A delivery only wakes the poll: of what it says, nothing but the model's name is used.

Every replica listens, and the leader works. A stand-by forwards a delivery that it believes to the
leader, or answers 503, which MLflow retries. What is lost all the same is found by the next round
of the poll.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from llm_operator import metrics
from llm_operator.observe import ConnectionSource
from llm_operator.ports.registry import webhook_secrets

PATH = "/webhooks/mlflow/{connection}"
ID = "X-MLflow-Delivery-Id"
TIMESTAMP = "X-MLflow-Timestamp"
SIGNATURE = "X-MLflow-Signature"
HANDED_ON = "X-LLM-Operator-Handed-On"
HAND_ON_SECONDS = 2.0
BODY_BYTES = 1 << 20
BODY_SECONDS = 10.0
BODIES = 8
"""Largest number of bodies that are read at the same time. Anybody who reaches the port may send
one, and it is verified only after it was read."""
WINDOW_SECONDS = 300.0
"""How far the sender's clock and ours may be apart, and how old a delivery may be."""
IDS_KEPT = 10_000


class Receiver:
    """Checks deliveries. `wake(connection, model)` is set while this process leads."""

    def __init__(
        self,
        connections: ConnectionSource,
        clock: Callable[[], float] = time.time,
        leader: Callable[[], str] = lambda: "",
    ) -> None:
        self._connections = connections
        self._clock = clock
        self._leader = leader
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._reading = 0
        self.wake: Callable[[str, str | None], None] | None = None

    async def receive(self, request: web.Request) -> web.Response:
        """Answer 202 for what will be looked at,
        4xx for what is not believed, 503 where another replica leads."""
        name = request.match_info["connection"]
        settings = self._connections.current().get(name)
        secrets = webhook_secrets(settings) if settings else ()
        if not secrets:
            return _answer(
                "unknown",
                404,
                f"no connection {name!r} with a webhookSecret: see docs/promotion.md",
            )
        if self._reading >= BODIES:
            return _answer(name, 503, f"{BODIES} deliveries are coming in: send it again")
        self._reading += 1
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
        except TimeoutError:
            return _answer(name, 408, f"the body did not arrive within {BODY_SECONDS:.0f} s")
        except ConnectionResetError:
            return _answer(name, 400, "the body ended before its end")
        finally:
            self._reading -= 1
        if why := refusal(secrets, request.headers, body, self._clock()):
            return _answer(name, 401, why)
        if self.wake is None:
            status = 503 if HANDED_ON in request.headers else await self._hand_on(request, body)
            return _answer(
                name,
                status,
                "another replica of the operator leads: send it again" if status == 503 else "",
            )
        if not self._repeated(request.headers[ID]):
            self.wake(name, _model(body))
        return _answer(name, 202, "")

    async def _hand_on(self, request: web.Request, body: bytes) -> int:
        """The status with which the leader takes what this stand-by believes;
        503 when it can't be reached."""
        if not self._leader():
            return 503
        headers = {name: request.headers[name] for name in (ID, TIMESTAMP, SIGNATURE)} | {
            HANDED_ON: "yes"
        }
        try:
            async with (
                ClientSession(timeout=ClientTimeout(HAND_ON_SECONDS)) as session,
                session.post(self._leader() + request.path, data=body, headers=headers) as answer,
            ):
                return 202 if answer.status == 202 else 503
        except (ClientError, TimeoutError, ValueError):
            return 503

    def _repeated(self, delivery: str) -> bool:
        """Whether this delivery was taken before: MLflow repeats one with the same id when the
        answer was lost.

        For whatever connection: connections may have one secret, and the signature names none.
        """
        if delivery in self._seen:
            return True
        self._seen[delivery] = None
        if len(self._seen) > IDS_KEPT:
            self._seen.popitem(last=False)
        return False


def refusal(secrets: tuple[str, ...], headers: Mapping[str, str], body: bytes, now: float) -> str:
    """Why a delivery is not believed; empty when one of the secrets signed it within the window."""
    delivery, stamp, signature = (headers.get(name, "") for name in (ID, TIMESTAMP, SIGNATURE))
    if not (delivery and stamp and signature):
        return f"{ID}, {TIMESTAMP} and {SIGNATURE} are needed: give the webhook in MLflow a secret"
    signed = _bytes(f"{delivery}.{stamp}.") + body
    if not any(hmac.compare_digest(_sign(secret, signed), _bytes(signature)) for secret in secrets):
        return "the signature is not that of this connection's webhookSecret"
    if not stamp.isascii() or not stamp.isdigit() or abs(now - int(stamp)) > WINDOW_SECONDS:
        return f"{TIMESTAMP} is more than {WINDOW_SECONDS:.0f} s away from the operator's clock"
    return ""


def _sign(secret: str, signed: bytes) -> bytes:
    return b"v1," + base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256))


def _bytes(header: str) -> bytes:
    return header.encode("utf-8", "surrogateescape")


def _model(body: bytes) -> str | None:
    """The registered model that something happened to."""
    try:
        name = json.loads(body)["data"]["name"]
    except (ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _answer(connection: str, status: int, message: str) -> web.Response:
    metrics.WEBHOOKS.labels(connection, str(status)).inc()
    response = web.json_response({"message": message} if message else {}, status=status)
    if status == 503:
        # A new connection has a chance to reach the leader: a Service chooses per connection.
        response.force_close()
        response.headers["Retry-After"] = "1"
    return response


async def serve(receiver: Receiver, host: str | None, port: int) -> web.AppRunner:
    """Start listening on `host` (None: all addresses)."""
    app = web.Application(client_max_size=BODY_BYTES)
    app.add_routes([web.post(PATH, receiver.receive)])
    runner = web.AppRunner(app, handle_signals=False, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host=host, port=port).start()
    return runner
