"""What goes wrong on a newcomer's machine, and the words that say so."""

import socket

import pytest

from compose.site import Site
from kindstack.shell import KindError
from waiting import eventually

pytestmark = pytest.mark.compose


@pytest.fixture(autouse=True)
def back_to_normal(site: Site) -> object:
    yield
    site.stack("up", "--detach", "--wait", *site.stack.services)
    eventually(site.serves)


def log(site: Site) -> str:
    return site.stack("logs", "--no-log-prefix", "--no-color", "runtime")


def test_a_model_that_does_not_fit_is_refused_with_the_limit_that_would_do(site: Site) -> None:
    with pytest.raises(KindError, match="unhealthy"):
        site.stack("up", "--detach", "--wait", "runtime", RUNTIME_MEMORY="512m")
    assert "the model does not fit: it needs" in log(site)
    assert "instead of 512 MiB" in log(site)


def test_a_wrong_password_of_the_database_is_told_and_requests_go_on(site: Site) -> None:
    site.stack("up", "--detach", "--wait", "--no-deps", "runtime", POSTGRES_PASSWORD="wrong")
    assert site.ask().status_code == 200
    said = (
        "The database postgresql://postgres:5432/llm does not answer: password authentication"
        " failed for user"
    )
    eventually(lambda: said in log(site))
    assert log(site).count(said) == 1
    assert "llm_database_up 0.0" in site.runtime.get("/metrics").text


def test_a_port_in_use_is_named(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(KindError, match=rf"127\.0\.0\.1:{port}.*address already in use"):
            site.stack("up", "--detach", "--wait", "runtime", RUNTIME_PORT=port)


def test_a_version_that_is_not_registered_is_named(site: Site) -> None:
    with pytest.raises(KindError, match="unhealthy"):
        site.stack("up", "--detach", "--wait", "runtime", MODEL_VERSION="77")
    assert "support-bot version 77" in log(site)
