"""MLflow's answers, as its server gives them, and what is made of each."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import certifi
import httpx
import pytest

from llm_operator.ports import registry
from llm_operator.ports.registry import CachedRegistry, MlflowRegistry, Reference, read_connection
from llm_operator.settings import ConnectionSettings
from llm_operator.state import Connection, ModelVersion
from unit.operator.fakes import FakeRegistry

SERVER = Connection("default", "http://mlflow:5000", username="u", password="p")
ALIAS = Reference("bot", alias="champion")


def answering(status: int, body: object) -> MlflowRegistry:
    text = body if isinstance(body, str) else json.dumps(body)
    return MlflowRegistry(httpx.MockTransport(lambda _: httpx.Response(status, text=text)))


@pytest.mark.parametrize(
    ("status", "body", "reference", "fault", "named"),
    [
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model with name=bot not found"},
         ALIAS, registry.ModelNotFound, "llm-runtime push FOLDER --name bot.*spec.model.mlflow.name"),
        (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias champion not found."},
         ALIAS, registry.AliasNotFound, "set_registered_model_alias"),
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Model Version (name=bot, version=9) not found"},
         Reference("bot", version="9"), registry.VersionNotFound, "bot/9"),
        (401, "You are not authenticated", ALIAS, registry.RegistryDenied, "password"),
        (403, {"error_code": "PERMISSION_DENIED"}, ALIAS, registry.ModelDenied, "READ there.*spec.model.mlflow.name"),
        (403, "Invalid Host header - possible DNS rebinding attack", ALIAS, registry.HostNotAllowed, "mlflow:5000"),
        (503, "busy", ALIAS, registry.RegistryUnreachable, "503"),
        (200, "<html>", ALIAS, registry.RegistryUnreachable, "tracking URI"),
    ],
)  # fmt: skip
async def test_each_refusal_has_its_own_reason_and_hint(
    status: int, body: object, reference: Reference, fault: type[registry.RegistryFault], named: str
) -> None:
    with pytest.raises(fault, match=named):
        await answering(status, body).resolve(SERVER, reference)


MISSING = {
    "error_code": "RESOURCE_DOES_NOT_EXIST",
    "message": "Model Version (name=bot, version=9) not found",
}
NO_ALIAS = {
    "error_code": "INVALID_PARAMETER_VALUE",
    "message": "Registered model alias champoin not found.",
}
NO_MODEL = {
    "error_code": "RESOURCE_DOES_NOT_EXIST",
    "message": "Registered Model with name=suport-bot not found",
}
MODEL = {
    "name": "bot",
    "aliases": [
        {"alias": alias, "version": str(n)}
        for n, alias in enumerate(("beta", "champion", "alpha"), 1)
    ],
    "latest_versions": [
        {"version": "4", "current_stage": "Staging"},
        {"version": "2", "current_stage": "Production"},
    ],
}


@pytest.mark.parametrize(
    ("reference", "refusal", "there", "said"),
    [
        (Reference("bot", alias="champoin"), (400, NO_ALIAS), {"registered_model": MODEL},
         "; there is: champion (version 2), alpha (version 3), beta (version 1)"),
        (Reference("bot", stage="Prod"), (200, {"model_versions": []}), {"registered_model": MODEL},
         "; there is: Production (version 2), Staging (version 4)"),
        (Reference("bot", version="9"), (404, MISSING), {"model_versions": [{"version": str(n)} for n in range(1, 14)]},
         "; there is: 9, 10, 8, 11, 7, 12, 6, 13, 5, 4 and 3 more"),
        (Reference("bot", version="9"), (404, MISSING), {"model_versions": []},
         "; there is none: llm-runtime push FOLDER --name bot registers one"),
        (Reference("suport-bot", alias="a"), (404, NO_MODEL),
         {"registered_models": [{"name": name} for name in ("billing", "Support-Bot", *"abcdefghijk")],
          "next_page_token": "x"},
         "; there is: Support-Bot, a, b, billing, c, d, e, f, g, h and more than 3 more"),
        (Reference("suport-bot", alias="a"), (404, NO_MODEL), {},
         "; there is none: llm-runtime push FOLDER --name suport-bot registers one"),
    ],
)  # fmt: skip
async def test_what_there_is_is_listed_for_what_there_is_not_by_one_question_an_interval(
    reference: Reference, refusal: tuple[int, object], there: object, said: str
) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path.partition("/mlflow/")[2])
        if seen[-1] in (
            "registered-models/search",
            "model-versions/search",
            "registered-models/get",
        ):
            return httpx.Response(200, json=there)
        return httpx.Response(refusal[0], json=refusal[1])

    clock = Ticks()
    cached = CachedRegistry(MlflowRegistry(httpx.MockTransport(answer)), 30, 5, clock)
    for clock.now, questions in ((0, 2), (10, 3), (31, 5)):
        with pytest.raises(registry.RegistryFault) as raised:
            await cached.resolve(SERVER, reference)
        assert str(raised.value).endswith(said)
        assert len(seen) == questions
    cached.forget(SERVER, reference.name)
    with pytest.raises(registry.RegistryFault):
        await cached.resolve(SERVER, reference)
    assert len(seen) == 7


async def test_who_may_not_ask_what_there_is_is_told_what_is_not() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        wrong = request.url.path.endswith("registered-models/alias")
        return httpx.Response(400, json=NO_ALIAS) if wrong else httpx.Response(403, json={})

    cached = CachedRegistry(MlflowRegistry(httpx.MockTransport(answer)), 30, 5, Ticks())
    with pytest.raises(registry.AliasNotFound, match=r"or correct spec\.model\.mlflow\.alias$"):
        await cached.resolve(SERVER, ALIAS)


async def test_no_answer_is_a_passing_fault() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(registry.RegistryUnreachable) as raised:
        await MlflowRegistry(httpx.MockTransport(refuse)).resolve(SERVER, ALIAS)
    assert not raised.value.fault.terminal


async def test_an_error_without_words_is_named_alone() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    with pytest.raises(registry.RegistryUnreachable, match=r"does not answer \(ReadTimeout\)\."):
        await MlflowRegistry(httpx.MockTransport(refuse)).resolve(SERVER, ALIAS)


def asked(seen: list[httpx.Request]) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path.endswith("alias"):
            return httpx.Response(
                200, json={"model_version": {"name": "bot", "version": "3", "run_id": "r"}}
            )
        if request.url.path.endswith("get-latest-versions"):
            return httpx.Response(
                200, json={"model_versions": [{"version": "9"}, {"version": "10"}]}
            )
        return httpx.Response(200, json={"artifact_uri": "mlflow-artifacts:/0/r"})

    return answer


async def test_an_alias_becomes_a_version_with_its_source_and_credentials_go_along() -> None:
    seen: list[httpx.Request] = []
    found = await MlflowRegistry(httpx.MockTransport(asked(seen))).resolve(SERVER, ALIAS)
    assert found == ModelVersion("bot", "3", "mlflow-artifacts:/0/r", "r")
    assert seen[0].headers["authorization"].startswith("Basic ")
    assert dict(seen[0].url.params) == {"name": "bot", "alias": "champion"}


async def test_the_newest_version_of_a_stage_is_compared_as_a_number() -> None:
    client = MlflowRegistry(httpx.MockTransport(asked([])))
    assert (await client.resolve(SERVER, Reference("bot", stage="Production"))).version == "10"


async def test_a_summary_reads_all_pages() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        last = "page_token" in request.url.params
        model = {"name": "b" if last else "a", "aliases": [{"alias": "champion", "version": "1"}]}
        return httpx.Response(
            200, json={"registered_models": [model], **({} if last else {"next_page_token": "x"})}
        )

    found = await MlflowRegistry(httpx.MockTransport(answer)).summary(SERVER)
    assert {name: model.aliases for name, model in found.items()} == {
        n: {"champion": "1"} for n in "ab"
    }


class Ticks:
    """A monotonic clock for the cache."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_version_is_asked_for_once_per_interval() -> None:
    inner = FakeRegistry()
    clock = Ticks()
    cached = CachedRegistry(inner, 30, 5, clock)
    for clock.now in (0, 10, 29, 31):
        await cached.resolve(SERVER, ALIAS)
    assert (inner.asked, inner.choices_asked) == (2, 0)
    cached.forget(SERVER, "bot")
    await cached.resolve(SERVER, ALIAS)
    assert inner.asked == 3


async def test_a_dead_server_is_left_alone_for_a_while() -> None:
    inner = FakeRegistry()
    clock = Ticks()
    inner.fault = registry.RegistryUnreachable("down")
    cached = CachedRegistry(inner, 30, 5, clock)
    for clock.now in (0, 1, 2, 6):
        with pytest.raises(registry.RegistryUnreachable):
            await cached.resolve(SERVER, ALIAS)
    assert inner.asked == 2


async def test_who_may_not_write_tags_may_still_ask() -> None:
    inner = FakeRegistry()
    inner.tag_fault = registry.RegistryDenied("403")
    cached = CachedRegistry(inner, 30, 5, Ticks())
    with pytest.raises(registry.RegistryDenied):
        await cached.tag(SERVER, "bot", "1", "a", "b")
    assert (await cached.resolve(SERVER, ALIAS)).version == "1"


async def test_a_server_that_is_silent_about_tags_is_left_alone_too() -> None:
    inner = FakeRegistry()
    clock = Ticks()
    inner.fault = registry.RegistryUnreachable("down")
    cached = CachedRegistry(inner, 30, 5, clock)
    for clock.now in (0, 1, 2, 6):
        with pytest.raises(registry.RegistryUnreachable):
            await cached.tags(SERVER, "bot", "1")
    assert inner.tag_reads == 2


@pytest.mark.parametrize(
    "fault",
    [
        registry.ModelDenied("403"),
        registry.RegistryUnreachable("500", answered=True),
        registry.RegistryUnreachable("no answer within 10 s"),
    ],
)
async def test_what_one_model_is_answered_with_harms_no_other(
    fault: registry.RegistryFault,
) -> None:
    inner = FakeRegistry()
    clock = Ticks()
    inner.model_faults = {f"secret-{n}": fault for n in range(5)}
    cached = CachedRegistry(inner, 30, 5, clock)
    for clock.now in range(0, 90, 3):
        for name in inner.model_faults:
            with pytest.raises(type(fault)):
                await cached.resolve(SERVER, Reference(name, alias="champion"))
        assert (await cached.resolve(SERVER, ALIAS)).version == "1"


async def test_who_may_not_list_models_may_still_ask_for_one() -> None:
    inner = FakeRegistry()
    clock = Ticks()
    cached = CachedRegistry(inner, 1, 5, clock)
    for clock.now in (0, 2, 4):
        inner.fault = registry.RegistryDenied("403 on the search")
        with pytest.raises(registry.RegistryDenied):
            await cached.summary(SERVER)
        inner.fault = None
        assert (await cached.resolve(SERVER, ALIAS)).version == "1"


async def test_a_model_of_the_list_that_cannot_be_read_is_left_out_alone() -> None:
    models = [{"name": "odd", "aliases": 7}, {"aliases": []}, "odd", {"name": "bot", "aliases": []}]
    assert list(await answering(200, {"registered_models": models}).summary(SERVER)) == ["bot"]


@pytest.mark.parametrize(
    "body", [[], {}, {"model_version": None}, {"model_version": {"version": None}}, {"x": 1}, "7"]
)
async def test_an_answer_without_what_belongs_into_it_is_a_fault_of_its_connection(
    body: object,
) -> None:
    found = answering(200, body)
    with pytest.raises(registry.RegistryUnreachable):
        await found.resolve(SERVER, ALIAS)


@pytest.mark.parametrize(
    "changed",
    [
        {"tracking_uri": "http://mlflow:99999999"},
        {"tracking_uri": "nonsense"},
        {"ca": "F\u0151tan\u00fas\u00edtv\u00e1ny"},
        {"token": "se\u0151cret"},
        {"workspace": "a\nb"},
    ],
)
async def test_whatever_keeps_a_question_from_being_asked_is_a_fault_of_its_connection(
    changed: dict[str, str],
) -> None:
    with pytest.raises(registry.RegistryUnreachable):
        await MlflowRegistry().resolve(replace(SERVER, **changed), ALIAS)


def test_a_bundle_keeps_its_certificates_and_loses_its_comments(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.crt"
    certificates = certifi.contents()
    bundle.write_text(
        "# NetLock Arany (F\u0151tan\u00fas\u00edtv\u00e1ny)\n" + certificates, encoding="utf-8"
    )
    found = read_connection(
        "tls", {"tls": ConnectionSettings(tracking_uri="https://a", ca_file=bundle)}
    )
    ssl.create_default_context(cadata=found.ca)
    assert found.ca.count("BEGIN CERTIFICATE") == certificates.count("BEGIN CERTIFICATE")


@pytest.mark.parametrize(
    ("name", "content"), [("ca.crt", b"no certificate"), ("token", b"\xff\xfe")]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    settings = ConnectionSettings(
        tracking_uri="https://a", ca_file=tmp_path / "ca.crt", credentials_folder=tmp_path
    )
    with pytest.raises(
        registry.RegistryUnreachable, match=f"connection 'tls' can't be used .*{name}"
    ):
        read_connection("tls", {"tls": settings})


def test_an_unknown_connection_names_the_known_ones() -> None:
    with pytest.raises(registry.ConnectionUnknown, match="it has: default"):
        read_connection("other", {"default": ConnectionSettings(tracking_uri="http://a")})


def test_credentials_never_show_in_a_repr() -> None:
    assert "secret" not in repr(
        Connection("c", "u", username="n", password="secret", token="secret")
    )
