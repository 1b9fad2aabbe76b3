"""One request to a candidate, on a connection of its own: so copies spread over all pods behind
its Service."""

import asyncio
from urllib.parse import urlsplit

import h11

CONNECT_SECONDS = 2.0
MOST_BYTES = 4 << 20
READ_BYTES = 1 << 16


async def post(url: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """Status and content of the answer. Whoever cancels it closes the connection.

    Raises OSError without a connection, and ValueError for what is no answer, is cut off,
    or has over MOST_BYTES.
    """
    to = urlsplit(url)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(to.hostname, to.port or 80)
    except TimeoutError as error:
        raise ConnectionError(f"no connection after {CONNECT_SECONDS:g} s") from error
    try:
        client = h11.Connection(h11.CLIENT)
        sent = {
            **headers,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        writer.write(
            client.send(h11.Request(method="POST", target=path, headers=list(sent.items()))) or b""
        )
        writer.write(client.send(h11.Data(data=body)) or b"")
        writer.write(client.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        return await _answer(client, reader)
    except h11.ProtocolError as error:
        raise ValueError(str(error)) from error
    finally:
        writer.transport.abort()


async def _answer(client: h11.Connection, reader: asyncio.StreamReader) -> tuple[int, bytes]:
    status = 0
    content = bytearray()
    while True:
        match client.next_event():
            case h11.NEED_DATA:
                client.receive_data(await reader.read(READ_BYTES))
            case h11.Response(status_code=found):
                status = found
            case h11.Data(data=part):
                content += part
                if len(content) > MOST_BYTES:
                    raise ValueError(f"more than {MOST_BYTES} bytes")
            case h11.EndOfMessage() | h11.ConnectionClosed():
                return status, bytes(content)
