"""The suite on kind: `make e2e-kind` has made cluster and images;
the modules share one installation, in this order."""

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import secrets_told
from devstack.registry import MlflowServer, push, set_alias
from kind import figures
from kind.figures import note
from kind.site import ROOT, Front, Site
from kindstack.__main__ import FOLDER
from kindstack.cluster import KindCluster
from unit.runtime import tiny_model

ORDER = (
    "network",
    "install",
    "samples",
    "start",
    "keys",
    "engine",
    "promotions",
    "nodes",
    "adapters",
    "surroundings",
    "policies",
    "upgrade",
)
"""What comes early is what a newcomer meets first; what takes the installation apart comes last."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--begin-before",
        type=float,
        default=float("inf"),
        metavar="EPOCH",
        help="seconds since 1970 after which no further test begins: each says that it was not run",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > item.config.getoption("--begin-before"):
        pytest.skip("NOT run: the time that was given to this run is over")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return ORDER.index(item.path.stem.removeprefix("test_"))

    items.sort(key=lambda item: place(item) if item.path.parent == Path(__file__).parent else -1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if figures.SEEN:
        terminalreporter.section("seen on the kind cluster")
        terminalreporter.write_line(figures.table())
        figures.write(FOLDER / "figures.json")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KindCluster]:
    """The cluster that hack/e2e-kind has started; it ends there, too."""
    attached = KindCluster.attach(FOLDER)
    with secrets_told.searched(attached.kubeconfig, tmp_path_factory):
        yield attached


@pytest.fixture(scope="session")
def mlflow(
    cluster: KindCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """A real registry on this machine that pods reach;
    three versions of `support-bot`, the third with cut weights."""
    env = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    # On this machine's address in the nodes' network: pods reach it as they would reach any server.
    folder = tmp_path_factory.mktemp("mlflow")
    anyone = ("--allowed-hosts", "*")  # else it refuses all but localhost
    server = MlflowServer(folder, env=env, options=anyone, host=cluster.host_address())
    server.start()
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second", "corrupt")):
        made = tiny_model.make(folder / name, seed=seed)
        if name == "corrupt":
            weights = made / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1000])
        push(server.uri, "support-bot", made)
    set_alias(server.uri, "support-bot", "champion", "1")
    push(server.uri, "playground", folder / "first", alias="latest-candidate")
    push(server.uri, "assistant", folder / "first", alias="champion")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def site(cluster: KindCluster, mlflow: MlflowServer) -> Site:
    """Installed with default values but for the addresses of images and registry.

    On a kept cluster (hack/e2e-kind up) the installation of the run before is upgraded.
    """
    made = Site(cluster, mlflow)
    made.installed_seconds = made.helm("upgrade" if made.installed() else "install")
    return made


@pytest.fixture(scope="session")
def bot(site: Site) -> Front:
    """The sample `support-bot` with its key, as README says."""
    samples = ROOT / "manifests" / "samples"
    began = time.monotonic()
    site.cluster.kubectl(
        "apply", "-f", str(samples / "support-bot.yaml"), "-f", str(samples / "web-team-key.yaml")
    )
    front = Front(site, "support-bot")
    front.ready()
    note("apply of the sample → Ready, weights fetched", f"{time.monotonic() - began:.1f} s")
    site.cluster.kubectl("wait", "llmkey/web-team", "--for=condition=Ready", "--timeout=60s")
    return front
