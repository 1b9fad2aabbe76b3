"""A kind cluster of two nodes, and all that a test does with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from kindstack import engine as engines
from kindstack import networks, node_image, programs
from kindstack.engine import NETWORK, Engine
from kindstack.phases import Phases
from kindstack.shell import KindError, run

CHUNK = 1 << 20
READY_SECONDS = 180
FREE_GIB = 15
UNPRIVILEGED_SCORES = '[plugins."io.containerd.grpc.v1.cri"]\n  restrict_oom_score_adj = true'


@dataclass(frozen=True)
class State:
    """What a later process needs to use a cluster that an earlier one started."""

    name: str
    image: str
    own_engine: bool
    docker_environment: dict[str, str]
    kind: str
    tools: str
    services: str
    pods: str = ""
    via: str = ""
    """The node's address that this machine's route to `services` leads to;
    empty before there is one."""


def engine_for_clusters(phases: Phases) -> tuple[Path, Engine]:
    """The kind program, and an engine with room for a cluster; the caller ends one of ours.

    Raises KindError.
    """
    with phases("kind (Go build)"):
        program = programs.kind(phases.progress)
    with phases("Docker engine"):
        engine = engines.find(program, phases.progress)
    try:
        engines.require_space(engine, FREE_GIB)
    except BaseException:
        engines.stop(engine)
        raise
    return program, engine


class KindCluster:
    """A running kind cluster with its state below one folder;
    `stop`, or the end of a `with` block, removes it.

    Both nodes take pods. Services' addresses and pods can be reached from this machine.
    """

    operator_image = "llm-operator:kind"
    runtime_image = "llm-runtime:kind"

    def __init__(self, folder: Path, state: State) -> None:
        self.folder = folder
        self.state = state
        self.name = state.name
        self.kubeconfig = folder / "kubeconfig"
        self.engine = Engine(state.own_engine, state.docker_environment)

    @classmethod
    def start(
        cls,
        folder: Path,
        tools: Path,
        phases: Phases,
        *,
        image: str | None = None,
        workers: int = 1,
    ) -> KindCluster:
        """Make a cluster named after its folder; one that a killed run left there is removed first.

        `tools` holds kubectl and helm (hack/kube/build), `image` names the node image (KIND_IMAGE).
        Raises KindError.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        program, engine = engine_for_clusters(phases)
        try:
            return cls._start(folder, tools, phases, program, engine, image, workers)
        except BaseException:
            engines.stop(engine)
            raise

    @classmethod
    def _start(
        cls,
        folder: Path,
        tools: Path,
        phases: Phases,
        program: Path,
        engine: Engine,
        image: str | None,
        workers: int,
    ) -> KindCluster:
        """The part of `start` that needs an engine; the caller ends that one where this fails."""
        number = int(hashlib.sha256(str(folder).encode()).hexdigest()[:8], 16)
        with phases("node image"):
            node = node_image.choose(engine, image, phases.progress)
        state = State(
            name=f"llm-operator-{number:08x}",
            image=node,
            own_engine=engine.own,
            docker_environment=engine.environment,
            kind=str(program),
            tools=str(tools),
            services="",
        )
        with phases("removing a leftover"):
            left = cls._left(folder)
            cls(
                folder, replace(state, services=left.services, via=left.via) if left else state
            )._delete()
        # Not those of clusters beside it, nor of anything else that this machine has a route to.
        taken = networks.routed()
        services = networks.free(networks.SERVICES, number, taken)
        cluster = cls(
            folder,
            replace(state, services=services, pods=networks.free(networks.PODS, number, taken)),
        )
        # Before there is anything to remove: hack/e2e-kind down finds what a killed start leaves.
        cluster._save()
        try:
            with phases("kind create cluster"):
                cluster._create(workers)
            with phases("nodes ready, DNS answers"):
                cluster._wait()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @classmethod
    def attach(cls, folder: Path) -> KindCluster:
        """The cluster that an earlier `start` left in `folder`.
        Raises KindError where there is none."""
        state = cls._left(folder.resolve())
        if state is None:
            raise KindError(f"no kind cluster in {folder}: start one with hack/e2e-kind up")
        return cls(folder.resolve(), state)

    @staticmethod
    def _left(folder: Path) -> State | None:
        file = folder / "state.json"
        return State(**json.loads(file.read_text())) if file.exists() else None

    def _save(self) -> None:
        (self.folder / "state.json").write_text(json.dumps(asdict(self.state)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the cluster, and end the engine if it is ours. Safe to call twice."""
        self._delete()
        self._forget()
        engines.stop(self.engine)

    def remove(self, progress: Callable[[str], None]) -> None:
        """`stop` for a cluster of another process, whose engine may have ended since,
        as with the machine.

        One of ours is started for it, as the cluster's containers lie there. Raises KindError where
        a person's does not answer.
        """
        if not self._engine_answers():
            try:
                engines.start(Path(self.state.kind), progress)
            except KindError as error:
                if os.geteuid() != 0 or engines.alive():
                    raise  # It may well run, with the cluster in it.
                progress(
                    f"the engine of {self.name} can't be started any more, so that nothing of it"
                    f" runs: {error}"
                )
                self._forget()
                return
        self.stop()

    def running(self) -> bool:
        """Whether the engine has the cluster and its API server is ready:
        a folder's files outlive both.

        Raises KindError where a person's engine does not answer: the cluster may be in it.
        """
        if not self._engine_answers():
            return False
        try:
            if self.name not in self._kind("get", "clusters").split():
                return False
            self.kubectl("get", "--raw", "/readyz", "--request-timeout=30s")
        except KindError:
            return False
        return True

    def _engine_answers(self) -> bool:
        if engines.answers(self.engine):
            return True
        if self.state.own_engine:
            return False
        raise KindError(
            f"the Docker engine of the cluster {self.name} does not answer: start it, and repeat"
            " this"
        )

    def _forget(self) -> None:
        for left in ("kubeconfig", "state.json", "kind.yaml"):
            (self.folder / left).unlink(missing_ok=True)

    def _kind(self, *arguments: str | Path) -> str:
        return run(self.state.kind, *arguments, env=self.engine.environment)

    def _delete(self) -> None:
        listed = self.name in self._kind("get", "clusters").split()
        # Also where kind does not know the cluster any more: its bridge may be there, and the route
        if self.state.via:
            with contextlib.suppress(
                KindError
            ):  # It went with the bridge, or another one stands in its place.
                self._route("del")
        if listed:
            self._kind("delete", "cluster", "--name", self.name, "--kubeconfig", self.kubeconfig)

    def _create(self, workers: int) -> None:
        kubelet = {
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            # Images are put there by hand: the kubelet must not remove them when the machine's disk
            # fills.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        }
        patches = [json.dumps(kubelet)]
        if workers:  # kind lets a control plane take pods by itself where it is the only node
            patches.append(
                json.dumps({"kind": "InitConfiguration", "nodeRegistration": {"taints": []}})
            )
        config: dict[str, Any] = {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "networking": {"podSubnet": self.state.pods, "serviceSubnet": self.state.services},
            "kubeadmConfigPatches": patches,
            "nodes": [{"role": role} for role in ("control-plane", *["worker"] * workers)],
        }
        if not engines.may_raise_limits():
            # Otherwise runc ends with "can't get final child's PID from pipe":
            # it may not lower an OOM score here.
            config["containerdConfigPatches"] = [UNPRIVILEGED_SCORES]
        file = self.folder / "kind.yaml"
        file.write_text(json.dumps(config, indent=2))  # JSON is YAML
        try:
            self._kind(
                *(
                    "create",
                    "cluster",
                    "--name",
                    self.name,
                    "--image",
                    self.state.image,
                    "--config",
                    file,
                ),
                *("--kubeconfig", self.kubeconfig),
            )
        except KindError as error:
            (self.folder / "create.log").write_text(str(error))
            reason = next(
                (line for line in str(error).splitlines() if line.startswith("ERROR: ")), str(error)
            )
            raise KindError(
                f"kind can't create the cluster: {reason}; all of it: {self.folder / 'create.log'}"
            ) from error
        # Known before it is there, so that a killed start leaves none.
        self.state = replace(self.state, via=self._address(f"{self.name}-control-plane"))
        self._save()
        self._route("add")

    def _wait(self) -> None:
        patience = f"--timeout={READY_SECONDS}s"
        self.kubectl("wait", "nodes", "--all", "--for=condition=Ready", patience)
        self.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", patience)

    def _route(self, verb: str) -> None:
        """Lead this machine's packets for Services to a node, where kube-proxy knows them.

        From a container in the machine's own network, so that root is not needed here. A route that
        somebody else made is neither replaced nor removed. Raises KindError.
        """
        self.engine.docker(
            *(
                "run",
                "--rm",
                "--privileged",
                "--network",
                "host",
                "--entrypoint",
                "ip",
                self.state.image,
            ),
            *("route", verb, self.state.services, "via", self.state.via),
        )

    def _address(self, node: str) -> str:
        form = '{{(index .NetworkSettings.Networks "' + NETWORK + '").IPAddress}}'
        return self.engine.docker("inspect", "--format", form, node).strip()

    def environment(self) -> dict[str, str]:
        """What a child needs to talk to the cluster and to its engine:
        KUBECONFIG, PATH, perhaps DOCKER_HOST."""
        path = f"{self.state.tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {
            **os.environ,
            **self.engine.environment,
            "KUBECONFIG": str(self.kubeconfig),
            "PATH": path,
        }

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its standard output. Raises KindError with what it said."""
        return run(f"{self.state.tools}/kubectl", *arguments, env=self.environment(), stdin=stdin)

    def helm(self, *arguments: str, stdin: str | None = None) -> str:
        """Run helm and return its standard output. Raises KindError with what it said."""
        return run(f"{self.state.tools}/helm", *arguments, env=self.environment(), stdin=stdin)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get -o json` of one object or a list."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    @property
    def nodes(self) -> list[str]:
        """The nodes' names, which are their containers' names, too;
        the control plane's comes first."""
        return sorted(self._kind("get", "nodes", "--name", self.name).split())

    def node_exec(self, node: str, *command: str) -> str:
        """Run a command as root in a node's container:
        to end a process, or to look at its files."""
        return self.engine.docker("exec", node, *command)

    def host_address(self) -> str:
        """An address of this machine that nodes and pods reach: that of the nodes' network."""
        configs = json.loads(
            self.engine.docker("network", "inspect", "--format", "{{json .IPAM.Config}}", NETWORK)
        )
        for each in configs or []:
            if "." in each.get("Gateway", ""):
                return str(each["Gateway"])
        raise KindError(
            f"the Docker network {NETWORK} has no IPv4 gateway, by which nodes reach this machine:"
            f" remove it (docker network rm {NETWORK}), and kind makes it anew with one"
        )

    def service_address(
        self, name: str, namespace: str = "default", port: int | None = None
    ) -> str:
        """Where clients on this machine reach a Service, like http://10.101.3.4:8000;
        its first port by default."""
        spec = self.get("-n", namespace, "service", name)["spec"]
        return f"http://{spec['clusterIP']}:{port or spec['ports'][0]['port']}"

    def load_image(self, name: str) -> None:
        """Bring an image of the engine into every node, read once for all of them.
        Raises KindError."""
        load(self.engine.environment, name, self.nodes)


def load(environment: Mapping[str, str], image: str, nodes: list[str]) -> None:
    """Stream an image out of the engine into the containerd of each node at the same time."""
    docker = shutil.which("docker") or "docker"
    whole = {**os.environ, **environment}
    command = [
        "ctr",
        "--namespace=k8s.io",
        "images",
        "import",
        "--digests",
        "--snapshotter=overlayfs",
        "-",
    ]
    source = subprocess.Popen(
        [docker, "save", image], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=whole
    )
    sinks = [
        subprocess.Popen(
            [docker, "exec", "--interactive", node, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=whole,
        )
        for node in nodes
    ]
    assert source.stdout is not None
    assert source.stderr is not None
    try:
        while block := source.stdout.read(CHUNK):
            for sink in sinks:
                assert sink.stdin is not None
                sink.stdin.write(block)
    except BrokenPipeError:
        pass  # The sink's own words are told below.
    for node, sink in zip(nodes, sinks, strict=True):
        said = sink.communicate()[1].decode(errors="replace").strip()
        if sink.returncode:
            source.kill()
            raise KindError(f"{image} can't be imported into the node {node}: {said[-1000:]}")
    if source.wait():
        raise KindError(
            f"docker save {image} failed: {source.stderr.read().decode(errors='replace').strip()}"
        )
