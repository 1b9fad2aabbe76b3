"""What clients and frameworks really send:
bodies captured from them, each as its client's folder of turns has it.

`clients/NAME-VERSION.json` holds the requests of one client, in order: a question, a call of a tool
and its result, an answer in a schema, a second question behind the whole history. Their contents
are invented, and long ones cut.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeCodec, ScriptedEngine
from llm_runtime.request import Constraint, Message
from llm_runtime.text.codec import Codec, codec_from_folder
from unit.runtime import tiny_model
from unit.runtime.tools.templates import QWEN

CLIENTS: dict[str, list[dict[str, Any]]] = {
    file.stem: json.loads(file.read_text())
    for file in sorted((Path(__file__).parent / "clients").glob("*.json"))
}
MODEL = "support-bot"


class RealCodec(FakeCodec):
    """Renders with a real template and compiles constraints with a real tokenizer."""

    def __init__(self, real: Codec) -> None:
        super().__init__(real.chat_template)
        self._real = real

    def encode_chat(self, messages: list[Message], *variables: Any) -> list[int]:
        super().encode_chat(messages, *variables)
        return self._real.encode_chat(messages, *variables)

    def check_constraint(self, constraint: Constraint) -> None:
        self._real.check_constraint(constraint)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return codec_from_folder(tiny_model.make_tokenizer(tmp_path_factory.mktemp("tokenizer")), QWEN)


@pytest.mark.parametrize("client", CLIENTS)
async def test_every_body_of_a_client_is_answered(run: Any, real: Codec, client: str) -> None:
    async with run(ScriptedEngine(codec=RealCodec(real), max_model_length=1 << 20)) as api:
        for number, body in enumerate(CLIENTS[client]):
            response = await api.client.post("/v1/chat/completions", json={**body, "model": MODEL})
            assert response.status_code == 200, f"{client}, request {number}: {response.text}"
            told = api.engine.codec.chats[-1]
            assert len(told) == len(body["messages"])
            assert all(isinstance(message["content"], str) for message in told)


def test_there_are_bodies_of_many_clients() -> None:
    assert len(CLIENTS) >= 15
    assert all(CLIENTS.values())
