"""A loop of chat requests against one endpoint: does anybody notice a roll-out?"""

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx


@dataclass
class Tally:
    """What the loop has seen so far."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.failures) + self.answers.total()


class RequestLoop:
    """`clients` threads that ask the same question one request after another,
    every other one as a stream.

    Each request is a connection of its own, as from many clients, and is never retried: a failure
    is a failure. An empty `key` sends none.
    """

    def __init__(
        self,
        url: str,
        key: str,
        model: str,
        question: str,
        clients: int = 2,
        max_tokens: int = 24,
        pause_seconds: float = 0.0,
    ) -> None:
        self.url = f"{url}/v1/chat/completions"
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            # The likeliest token, always.
            # With temperature 0 the completion cache would answer, and not the model.
            "temperature": 1,
            "top_k": 1,
            "max_tokens": max_tokens,
        }
        self.pause_seconds = pause_seconds
        self.tally = Tally()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def start(self) -> "RequestLoop":
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> Tally:
        """End the loop after the requests under way and return the tally."""
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        return self.tally

    def _run(self) -> None:
        stream = False
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                answer = self._stream() if stream else self._once()
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self._note(failure=f"{time.strftime('%H:%M:%S')} {type(error).__name__}: {error}")
                self._stop.wait(0.2)
            else:
                self._note(answer=answer, seconds=time.monotonic() - started)
                self._stop.wait(self.pause_seconds)
            stream = not stream

    def _note(
        self, *, answer: str | None = None, failure: str | None = None, seconds: float = 0.0
    ) -> None:
        with self._lock:
            if failure is not None:
                self.tally.failures.append(failure)
            elif answer is not None:
                self.tally.answers[answer] += 1
                self.tally.seconds.append(seconds)

    def _once(self) -> str:
        with httpx.Client(timeout=60, trust_env=False) as client:
            response = client.post(self.url, headers=self.headers, json=self.body)
            response.raise_for_status()
            return str(response.json()["choices"][0]["message"]["content"])

    def _stream(self) -> str:
        text = ""
        finished = False
        with (
            httpx.Client(timeout=60, trust_env=False) as client,
            client.stream(
                "POST", self.url, headers=self.headers, json={**self.body, "stream": True}
            ) as response,
        ):
            response.raise_for_status()
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    finished = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise ValueError(event["error"])
                    for choice in event["choices"]:
                        text += choice["delta"].get("content") or ""
        if not finished:
            raise ValueError("the stream ended without [DONE]")
        return text
