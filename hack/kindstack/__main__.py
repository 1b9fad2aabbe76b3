"""The verbs of hack/e2e-kind: prepare, up, down, load, and test, which is all of them around pytest."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from kindstack import engine as engines
from kindstack import images, node_image
from kindstack.cluster import KindCluster, engine_for_clusters
from kindstack.phases import Phases
from kindstack.shell import ROOT, KindError, MachineLacks, selection, verb_of

FOLDER = ROOT / ".e2e-kind"
EXIT_MACHINE_LACKS = 3
"""The exit status where this machine can't run a cluster;
nothing has failed then, and nothing was tested."""

NEXT = """\
Both images are in the nodes; the operator is not installed, and no MLflow runs inside. Next, with the address
of an MLflow server that pods can reach:
  export KUBECONFIG={kubeconfig} PATH="$(hack/kube/build):$PATH"
  helm install llm-operator charts/llm-operator --namespace llm-operator-system --create-namespace \\
    --set image.tag=kind --set runtime.image.tag=kind --set connections.default.trackingUri=http://HOST:5000"""


def main() -> None:
    """Parse the command line and do it; a failure is one line."""
    parser = argparse.ArgumentParser(
        prog="hack/e2e-kind",
        usage="%(prog)s [test|prepare|up|load|down] [--image NODE-IMAGE] [pytest arguments]",
        description="The suite of tests/kind on a real kind cluster.",
        # Else pytest's --im… would be one of these.
        allow_abbrev=False,
    )
    parser.add_argument(
        "--image", default=os.environ.get("KIND_IMAGE"), help="the nodes' image, also KIND_IMAGE"
    )
    parser.add_argument(
        "--tools", type=Path, required=True, help="folder of kubectl and helm: hack/kube/build"
    )
    arguments, rest = parser.parse_known_args()
    # A run that is ended by its caller removes its cluster, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        verb, rest = verb_of(rest, VERBS)
        sys.exit(VERBS[verb](arguments, rest))
    except KindError as error:
        say(f"e2e-kind: {error}")
        sys.exit(EXIT_MACHINE_LACKS if isinstance(error, MachineLacks) else 1)


def say(line: str) -> None:
    print(line, flush=True)


def up(arguments: argparse.Namespace, phases: Phases) -> KindCluster:
    """A cluster with both images in it."""
    cluster = KindCluster.start(FOLDER, arguments.tools, phases, image=arguments.image)
    try:
        load(cluster, phases)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def build(engine: engines.Engine, image: str, phases: Phases) -> None:
    with phases(f"building {image}"):
        images.build(engine, image, phases.progress)


def load(cluster: KindCluster, phases: Phases) -> None:
    for image in images.ALL:
        build(cluster.engine, image, phases)
        with phases(f"loading {image} into {len(cluster.nodes)} nodes"):
            cluster.load_image(image)


def verb_prepare(arguments: argparse.Namespace, _: list[str]) -> int:
    """Build all that needs no cluster; the engine's cache makes it quick for who starts one later."""
    phases = Phases(say)
    _program, engine = engine_for_clusters(phases)
    try:
        with phases("node image"):
            node_image.choose(engine, arguments.image, phases.progress)
        for image in images.ALL:
            build(engine, image, phases)
    finally:
        engines.stop(engine)
    return 0


def verb_up(arguments: argparse.Namespace, _: list[str]) -> int:
    phases = Phases(say)
    cluster = up(arguments, phases)
    say(f"\n{phases.table()}\n\n{NEXT.format(kubeconfig=cluster.kubeconfig)}")
    return 0


def verb_load(_: argparse.Namespace, __: list[str]) -> int:
    load(KindCluster.attach(FOLDER), Phases(say))
    return 0


def verb_down(_: argparse.Namespace, __: list[str]) -> int:
    if (FOLDER / "state.json").exists():
        KindCluster.attach(FOLDER).remove(say)
    return 0


def verb_test(arguments: argparse.Namespace, rest: list[str]) -> int:
    phases = Phases(say)
    with up(arguments, phases):
        with phases("tests/kind"):
            # With the names and figures of tests as they run: they take minutes.
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-v",
                "-s",
                "-rs",
                "--durations=12",
                *selection("tests/kind", rest),
            ]
            status = subprocess.run(command, cwd=ROOT).returncode
        phases.write(FOLDER / "phases.json")
    say(f"\n{phases.table()}")
    return status


VERBS = {
    "test": verb_test,
    "prepare": verb_prepare,
    "up": verb_up,
    "load": verb_load,
    "down": verb_down,
}

if __name__ == "__main__":
    main()
