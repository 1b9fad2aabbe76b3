"""A Kubernetes control plane for the demo, the tests and people:
local processes, kind, or one that exists.

    PYTHONPATH=hack python -m devstack.cluster up --folder .demo/cluster
    eval "$(PYTHONPATH=hack python -m devstack.cluster env --folder .demo/cluster)"; kubectl get
    namespaces PYTHONPATH=hack python -m devstack.cluster down --folder .demo/cluster

All state lies below the folder; $HOME/.kube is never written. See docs/process-node.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from devstack import control_plane
from devstack.waits import complain
from kindstack.cluster import KindCluster
from kindstack.phases import Phases
from kindstack.shell import KindError

Kind = Literal["local", "kind", "context"]
Provider = Literal["auto", "local", "kind", "context"]
BUILD = Path(__file__).resolve().parent.parent / "kube" / "build"
# A start can lose a free port to another program between choosing it and listening on it.
ATTEMPTS = 3
VARIABLES = ("KUBECONFIG", "KUBECACHEDIR", "PATH")


class ClusterError(RuntimeError):
    """The cluster cannot be had; the message says what to do next."""


@dataclass(frozen=True)
class Cluster:
    """A running or attached control plane.

    `kubeconfig` is the administrator's. `programs` holds kubectl, helm and kwok when the cluster is
    local, or where no kubectl was on the PATH; else None.
    """

    kubeconfig: Path
    kind: Kind
    folder: Path
    programs: Path | None = field(default=None)

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        progress: Callable[[str], None] = print,
        provider: Provider = "auto",
        context: str | None = None,
        image: str | None = None,
        detach: bool = False,
    ) -> Cluster:
        """Start a cluster with its state below `folder`, or return the one that runs there.

        `auto` takes kind where a Docker engine answers and either kind is installed or a node image
        is named, else local processes; an existing cluster only on request (`provider="context"`
        and its name). `image` is that of a kind cluster's node; without one it is KIND_IMAGE,
        kind's own, or one of packages.
        A local cluster ends with this process unless `detach`. Raises ClusterError.
        """
        chosen = choose(provider, context, image)
        folder = folder.resolve()
        if chosen == "context" and not context:
            raise ClusterError(
                "name the context: --provider context --context NAME (kubectl config get-contexts"
                " lists them)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        programs = (
            build(progress) if chosen != "context" or shutil.which("kubectl") is None else None
        )
        if context and chosen == "context":
            return cls(attach_context(folder, context, programs), "context", folder, programs)
        if chosen == "kind":
            assert programs is not None
            return cls(create_kind(folder, image, programs, progress), "kind", folder, programs)
        assert programs is not None
        return cls(start_local(folder, programs, detach, progress), "local", folder, programs)

    @classmethod
    def attach(cls, folder: Path) -> Cluster:
        """The cluster that an earlier `start` left in `folder`.
        Raises ClusterError where there is none."""
        folder = folder.resolve()
        if not (folder / "kubeconfig").exists():
            raise ClusterError(
                f"no cluster in {folder}: start one with `python -m devstack.cluster up --folder"
                f" {folder}`"
            )
        if (folder / "state.json").exists():
            return cls(
                folder / "kubeconfig", "kind", folder, Path(KindCluster.attach(folder).state.tools)
            )
        local = (folder / "pids").exists()
        programs = build(complain) if local or shutil.which("kubectl") is None else None
        return cls(folder / "kubeconfig", "local" if local else "context", folder, programs)

    def stop(self) -> None:
        """End what `start` started and remove its state;
        an attached cluster is left as it is. Safe to call twice."""
        if self.kind == "local":
            control_plane.stop(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.kind == "kind" and (self.folder / "state.json").exists():
            KindCluster.attach(self.folder).remove(complain)

    def environment(self) -> dict[str, str]:
        """The environment for programs that talk to this cluster:
        KUBECONFIG, and PATH with kubectl and helm.

        What they learn of the API is kept in the folder, too: else it would stay below $HOME/.kube.
        """
        own = {
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.folder / "kubectl-cache"),
        }
        return {**with_programs(self.programs), **own}

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its standard output.
        Raises ClusterError with what it said on standard error."""
        return run("kubectl", *arguments, environment=self.environment(), stdin=stdin)


def with_programs(programs: Path | None) -> dict[str, str]:
    """This process's environment with the built programs,
    where there are some, first on the PATH."""
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": path if programs is None else f"{programs}{os.pathsep}{path}"}


def choose(provider: Provider, context: str | None, image: str | None = None) -> Kind:
    """What `provider` stands for on this machine.

    `auto` takes kind where an engine answers and a person has shown a wish for it, by an image or
    an installed kind: without either, minutes would go into a node image, and local processes do as
    well.
    """
    if provider == "context" or (provider == "auto" and context):
        return "context"
    if provider == "auto":
        wished = image or os.environ.get("KIND_IMAGE") or shutil.which("kind")
        return "kind" if wished and docker_answers() else "local"
    return provider


def docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        return (
            subprocess.run(
                ["docker", "info"], capture_output=True, timeout=5, check=False
            ).returncode
            == 0
        )
    except subprocess.TimeoutExpired:
        return False


def build(progress: Callable[[str], None]) -> Path:
    """The folder of the local programs, built now if they never were."""
    process = subprocess.Popen(
        [sys.executable, str(BUILD)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    last = ""
    for line in process.stderr:
        last = line.rstrip()
        progress(last)
    folder = process.stdout.read().strip()
    if process.wait() != 0:
        raise ClusterError(f"the local control plane cannot be built: {last}")
    return Path(folder)


def start_local(
    folder: Path, programs: Path, detach: bool, progress: Callable[[str], None]
) -> Path:
    if control_plane.running(folder):
        progress(f"already running in {folder}")
        return folder / "kubeconfig"
    for attempt in range(1, ATTEMPTS + 1):
        clear(folder)
        try:
            return control_plane.start(folder, programs, detach=detach, progress=progress)
        except control_plane.ControlPlaneError as error:
            control_plane.stop(folder)
            if attempt == ATTEMPTS or "address already in use" not in str(error):
                raise ClusterError(str(error)) from error
    raise AssertionError("unreachable")


def clear(folder: Path) -> None:
    """Remove what an earlier life left.
    Only a folder that is empty or held a cluster: never somebody's own files."""
    if any(folder.iterdir()) and not (folder / "pids").exists():
        raise ClusterError(f"{folder} is not empty and holds no cluster: choose another --folder")
    control_plane.stop(folder)
    shutil.rmtree(folder)
    folder.mkdir()


def create_kind(
    folder: Path, image: str | None, programs: Path, progress: Callable[[str], None]
) -> Path:
    """One kind cluster per folder, named after it so that two checkouts do not share one.
    `image` is the nodes'."""
    try:
        if (folder / "state.json").exists() and (folder / "kubeconfig").exists():
            existing = KindCluster.attach(folder)
            if existing.running():
                return existing.kubeconfig
            progress(f"the kind cluster of {folder} does not run any more: making it anew")
        return KindCluster.start(
            folder,
            programs,
            Phases(progress),
            image=image or os.environ.get("KIND_IMAGE"),
            workers=0,
        ).kubeconfig
    except KindError as error:
        raise ClusterError(str(error)) from error


def attach_context(folder: Path, context: str, programs: Path | None) -> Path:
    """A kubeconfig of its own for the context,
    so that nothing here can follow a later `kubectl config use-context`."""
    if (folder / "pids").exists():
        raise ClusterError(f"{folder} holds a local cluster: choose another --folder")
    view = ("kubectl", "config", "view", "--raw", "--minify", "--flatten", "--context", context)
    text = run(*view, environment=with_programs(programs))
    file = folder / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(text)
    return file


def run(*command: str, environment: dict[str, str] | None = None, stdin: str | None = None) -> str:
    program = shutil.which(command[0], path=(environment or os.environ).get("PATH"))
    if program is None:
        raise ClusterError(f"{command[0]} is not installed: install it, or use --provider local")
    done = subprocess.run(
        [program, *command[1:]],
        capture_output=True,
        text=True,
        env=environment,
        input=stdin,
        check=False,
    )
    if done.returncode != 0:
        raise ClusterError(f"{shlex.join(command)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m devstack.cluster", description="A cluster for development."
    )
    parser.add_argument("verb", choices=["up", "down", "env"])
    parser.add_argument(
        "--folder", type=Path, required=True, help="holds all of the cluster's state"
    )
    parser.add_argument("--image", help="image of a kind cluster's node (KIND_IMAGE)")
    parser.add_argument("--provider", choices=["auto", "local", "kind", "context"], default="auto")
    parser.add_argument(
        "--context", help="an existing context of your KUBECONFIG, with --provider context"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    try:
        if options.verb == "up":
            Cluster.start(
                options.folder,
                progress=complain,
                provider=options.provider,
                context=options.context,
                image=options.image,
                detach=True,
            )
        elif options.verb == "down":
            Cluster.attach(options.folder).stop()
        else:
            environment = Cluster.attach(options.folder).environment()
            print(
                "\n".join(f"export {name}={shlex.quote(environment[name])}" for name in VARIABLES)
            )
    except ClusterError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
