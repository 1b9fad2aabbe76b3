"""No secret of a session is told: what could be read without one is searched for each of them at
the end.

Searched are all logs below pytest's folder, those of every container, Events, every state that
objects of the cluster had, pages of operators and pods that are open without a key, and traces.
Secrets are what the cluster's Secrets held at any time, and what `used` and `invented` were told.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import re2

from llm_operator.ports.cluster import path_of
from node.api import read_kubeconfig

Json = dict[str, Any]
USER_AGENT = "secrets-told"
"""Who reads pages for the search: tests that count requests leave its own out."""
MIN_CHARACTERS = 12
"""A shorter secret would be found by chance.
It is named in the summary instead of being searched for."""
KINDS = (
    "Event",
    "Pod",
    "LLMDeployment",
    "ApiKey",
    "Deployment",
    "ConfigMap",
    "Service",
    "ServiceAccount",
    "Node",
)
PUBLIC = frozenset({
    "ca.crt", "tls.crt", "namespace", "username", "workspace", "caFile", "trackingUri", "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_WORKSPACE", "LLM_ARTIFACT_HOSTS", "HF_ENDPOINT", "AWS_REGION",
    "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL",
})  # fmt: skip
"""Fields of Secrets that are none."""
IN_JSON = ("digest", "password", "token")
"""Fields of JSON in Secrets that are secret; the rest is names, limits and versions."""
NO_SECRETS = ("helm.sh/release.v1",)
"""Types of Secrets that hold what everybody may know."""
PAGES = {
    "llm-operator": (8080, ("/metrics", "/readyz")),
    "llm-runtime": (8000, ("/metrics", "/info", "/status")),
}
"""By the label app.kubernetes.io/name: the port, and what is open on it without a key."""
PAGE_SECONDS = 5.0
LAG_SECONDS = 1.0
"""After which the watches have brought what was done before."""
SHOWN = 20

_used: dict[str, str] = {}
_pages: dict[str, str] = {}
_first: list[bytes] = []
_summaries: list[str] = []


def used(name: str, value: str) -> str:
    """Have `value` searched for: for secrets that are never in a Secret of the cluster.
    Returns it."""
    _used[value] = name
    return value


def invented(name: str) -> str:
    """A new secret that nothing else looks like."""
    return used(name, f"{name}-{secrets.token_hex(16)}")


def page(url: str, name: str) -> None:
    """Read this page now, and then every few seconds while it answers."""
    _pages[url] = name
    with suppress(httpx.HTTPError):
        _first.append(_titled(name, url, httpx.get(url, timeout=20, trust_env=False).content))


def _titled(name: str, url: str, content: bytes) -> bytes:
    return f"# {name}: {urlsplit(url).path}\n".encode() + content + b"\n"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _summaries:
        terminalreporter.section("secrets told")
        terminalreporter.write_line("\n".join(_summaries))


@contextmanager
def searched(kubeconfig: Path, factory: pytest.TempPathFactory) -> Iterator[None]:
    """Follow the cluster for a session; at its end, fail if a secret was told."""
    listener = Listener(kubeconfig, factory.mktemp("told"))
    listener.start()
    try:
        yield
    finally:
        listener.stop()
    forms = Forms.of({**listener.secrets, **_used})
    seen = listener.seen(factory.getbasetemp())
    found, summary = search(forms, seen)
    _summaries.append(summary)
    canary = [each for each in found if each.secret == CANARY]
    assert canary, (
        f"the search finds nothing: {CANARY} lies in a ConfigMap and was not found. {summary}"
    )
    assert "logs" in seen, f"there is no log below {factory.getbasetemp()}"
    leaks = [str(each) for each in found if each.secret != CANARY]
    assert not leaks, f"{len(leaks)} places tell a secret:\n" + "\n".join(leaks[:SHOWN])


CANARY = "the canary that must be found"


class Listener:
    """Writes down what a cluster and its pods say."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self.folder = folder
        server, trust, headers = read_kubeconfig(kubeconfig)
        self.secrets = dict[str, str]()
        if "Authorization" in headers:
            self.secrets[headers["Authorization"].split()[-1]] = "the administrator's token"
        self._client = httpx.Client(
            base_url=server, verify=trust, headers=headers, trust_env=False, timeout=httpx.Timeout(20, read=None),
            limits=httpx.Limits(max_connections=None),
        )  # fmt: skip
        self._stop = threading.Event()
        self._followed = set[tuple[str, str, int]]()
        self._pods: dict[str, Json] = {}

    def start(self) -> None:
        for kind in (*KINDS, "Secret"):
            self._in_background(self._watch, kind)
        self._in_background(self._read_pages)

    def stop(self) -> None:
        """Hear what was said up to now, and the canary with it."""
        name = f"canary-{secrets.token_hex(4)}"
        body = {"metadata": {"name": name}, "data": {"said": used(CANARY, secrets.token_hex(16))}}
        self._client.post(path_of("ConfigMap", "default"), json=body).raise_for_status()
        self._stop.wait(LAG_SECONDS)
        self._stop.set()
        self._client.delete(path_of("ConfigMap", "default", name))

    def seen(self, base: Path) -> dict[str, list[Path]]:
        """What was written down and what lies below `base`, by what it is; nothing empty."""
        (self.folder / "first.pages").write_bytes(b"".join(_first))
        found = {
            "objects and Events": [*self.folder.glob("*.jsonl")],
            "logs": [file for file in base.rglob("*.log") if file.is_file()],
            "pages": [*self.folder.glob("*.pages")],
            "traces": [*base.rglob("*.traces")],
        }
        full = {
            name: [file for file in files if file.stat().st_size] for name, files in found.items()
        }
        return {name: files for name, files in full.items() if files}

    def _in_background(self, work: Any, *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _watch(self, kind: str) -> None:
        hear = {"Secret": self._learn, "Pod": self._follow}.get(kind)
        with (self.folder / f"{kind}.jsonl").open("ab", buffering=0) as file:
            while not self._stop.is_set():
                rest = b""
                for piece in self._stream(path_of(kind, ""), watch="1"):
                    *lines, rest = (rest + piece).split(b"\n")
                    if kind != "Secret":
                        file.writelines(line + b"\n" for line in lines)
                    for line in filter(None, lines) if hear else ():
                        hear(json.loads(line)["object"])
                self._stop.wait(1)  # It is no kind of this cluster yet, or the API server is away.

    def _stream(self, path: str, **query: str) -> Iterator[bytes]:
        try:
            with self._client.stream("GET", path, params=query) as answer:
                if answer.is_success:
                    yield from answer.iter_raw()
        except httpx.HTTPError:
            return

    def _learn(self, secret: Json) -> None:
        self.secrets.update(values(secret))

    def _follow(self, pod: Json) -> None:
        meta = pod.get("metadata", {})
        status = pod.get("status", {})
        for state in (
            *status.get("initContainerStatuses", ()),
            *status.get("containerStatuses", ()),
        ):
            known = meta["uid"], state["name"], state["restartCount"]
            if known not in self._followed and state.get("state", {}).keys() & {
                "running",
                "terminated",
            }:
                self._followed.add(known)
                self._in_background(self._write_log, meta["namespace"], meta["name"], *known)
        self._pods.pop(meta["uid"], None)
        if status.get("podIP") and "deletionTimestamp" not in meta:
            self._pods[meta["uid"]] = pod

    def _write_log(self, namespace: str, pod: str, _: str, container: str, restarts: int) -> None:
        name = f"{namespace}.{pod}.{container}.{restarts}.{secrets.token_hex(3)}.log"
        with (self.folder / name).open("ab", buffering=0) as file:
            for piece in self._stream(
                path_of("Pod", namespace, pod) + "/log", container=container, follow="true"
            ):
                file.write(piece)

    def _read_pages(self) -> None:
        with (
            (self.folder / "read.pages").open("ab", buffering=0) as file,
            self._reader() as outside,
        ):
            while not self._stop.wait(PAGE_SECONDS):
                asked = [(outside, url, name) for url, name in list(_pages.items())]
                asked += [
                    each
                    for pod in list(self._pods.values())
                    for each in self._pages_of(pod, outside)
                ]
                for client, url, name in asked:
                    with suppress(httpx.HTTPError):
                        file.write(_titled(name, url, client.get(url, timeout=2).content))

    @staticmethod
    def _reader() -> httpx.Client:
        return httpx.Client(trust_env=False, headers={"User-Agent": USER_AGENT})

    def _pages_of(
        self, pod: Json, outside: httpx.Client
    ) -> Iterator[tuple[httpx.Client, str, str]]:
        """By whom each page of a pod can be read, where, and whose it is."""
        meta = pod["metadata"]
        address = pod["status"]["podIP"]
        port, pages = PAGES.get(meta.get("labels", {}).get("app.kubernetes.io/name", ""), (0, ()))
        for each in pages:
            name = f"pod {meta['namespace']}/{meta['name']}"
            if ip_address(address).is_loopback:  # The API server hands nothing on to these.
                yield outside, f"http://{address}:{port}{each}", name
            else:
                path = path_of("Pod", meta["namespace"], f"{meta['name']}:{port}")
                yield self._client, f"{path}/proxy{each}", name


@dataclass(frozen=True)
class Collector:
    """Where pods send traces, and the file that has all of them for the search."""

    address: str
    file: Path


@contextmanager
def collector(folder: Path) -> Iterator[Collector]:
    """A collector of OTLP over HTTP."""
    kept = folder / "received.traces"
    with kept.open("ab", buffering=0) as file:

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                file.write(self.rfile.read(int(self.headers["Content-Length"])) + b"\n")
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Collector(f"http://127.0.0.1:{server.server_port}", kept)
        server.shutdown()


def values(secret: Json) -> Iterator[tuple[str, str]]:
    """Each value that a Secret keeps, and what to call it."""
    if secret.get("type") in NO_SECRETS:
        return
    meta = secret.get("metadata", {})
    for name, encoded in (secret.get("data") or {}).items():
        if name in PUBLIC:
            continue
        text = base64.b64decode(encoded).decode(errors="replace").strip()
        called = f"Secret {meta.get('namespace')}/{meta.get('name')}, {name}"
        for each in _parts(text):
            yield each, called


def _parts(text: str) -> Iterator[str]:
    """What of a value would be told by itself:
    a line of a private key, a password in an address, fields of JSON."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict | list):
        yield from _leaves(content)
        return
    yield from (line for line in text.splitlines() if not line.startswith("-----"))
    try:
        password = urlsplit(text).password
    except ValueError:
        password = None
    if password:
        yield password


def _leaves(content: Any) -> Iterator[str]:
    if isinstance(content, list):
        for each in content:
            yield from _leaves(each)
    elif isinstance(content, dict):
        for name, each in content.items():
            if isinstance(each, str) and name in IN_JSON:
                yield each
            yield from _leaves(each)


@dataclass(frozen=True)
class Forms:
    """How secrets may be written, by the name of each."""

    written: dict[bytes, str]
    short: tuple[str, ...]
    count: int

    @classmethod
    def of(cls, known: dict[str, str]) -> Forms:
        long = {value: name for value, name in known.items() if len(value) >= MIN_CHARACTERS}
        short = {name for value, name in known.items() if value not in long}
        written = {form: name for value, name in long.items() for form in forms(value)}
        return cls(written, tuple(sorted(short)), len(long))


def forms(secret: str) -> Iterator[bytes]:
    """Plain, escaped as in JSON, quoted as in an address,
    and within base64, wherever in it the secret begins."""
    plain = secret.encode()
    yield plain
    yield json.dumps(secret)[1:-1].encode()
    yield json.dumps(secret, ensure_ascii=False)[1:-1].encode()
    yield quote(secret, safe="").encode()
    for before in range(3):
        text = base64.b64encode(bytes(before) + plain)
        # A letter at either end may be made of what stands beside the secret, too.
        inner = text[(0, 2, 3)[before] : len(text) - (0, 3, 2)[(before + len(plain)) % 3]]
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))


@dataclass(frozen=True)
class Leak:
    """Where a secret was told; never the secret itself."""

    secret: str
    place: str
    line: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.secret}: {self.place}: {self.line}"


PIECE_BYTES = 8 << 20


def search(forms: Forms, seen: dict[str, list[Path]]) -> tuple[list[Leak], str]:
    """Where the secrets stand, once for each place, and what was searched for where, in words."""
    options = re2.Options()
    options.max_mem = 1 << 30
    pattern = re2.compile(b"|".join(map(re.escape, forms.written)), options)
    leaks = dict.fromkeys(
        leak
        for files in seen.values()
        for file in files
        for leak in _search(pattern, forms.written, file)
    )
    sizes = {name: sum(file.stat().st_size for file in files) for name, files in seen.items()}
    where = ", ".join(
        f"{size / 1e6:.1f} MB of {name} ({len(seen[name])} files)" for name, size in sizes.items()
    )
    summary = f"{forms.count} secrets searched for in {where}"
    if forms.short:
        summary += (
            f"; shorter than {MIN_CHARACTERS} characters and left out: {'; '.join(forms.short)}"
        )
    return list(leaks), summary


def _search(pattern: Any, written: dict[bytes, str], file: Path) -> Iterator[Leak]:
    for piece in _pieces(file):
        for match in pattern.finditer(piece):
            start = piece.rfind(b"\n", 0, match.start()) + 1
            end = piece.find(b"\n", match.end())
            line = piece[start : end if end >= 0 else None]
            name = written[match.group()]
            hidden = line[max(0, match.start() - start - 150) :].replace(
                match.group(), f"<{name}>".encode()
            )
            yield Leak(
                name, _place(file, line, match.group()), hidden[:400].decode(errors="replace")
            )


def _pieces(file: Path) -> Iterator[bytes]:
    """The file in whole lines."""
    with file.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece + stream.readline()


def _place(file: Path, line: bytes, form: bytes) -> str:
    """The object and its field; of a log, the file."""
    try:
        found = json.loads(line)["object"]
        meta = found["metadata"]
    except (ValueError, LookupError, TypeError):
        return str(file)
    return f"{found.get('kind', file.stem)} {meta.get('namespace')}/{meta['name']} {'.'.join(_path(found, form))}"


def _path(content: Any, form: bytes) -> Iterator[str]:
    entries: Iterable[tuple[str, Any]] = ()
    if isinstance(content, dict):
        entries = content.items()
    elif isinstance(content, list):
        entries = ((str(number), each) for number, each in enumerate(content))
    for name, each in entries:
        if form in json.dumps({name: each}).encode():
            yield name
            yield from _path(each, form)
            return
