"""The demo's story in the open: install, apply, wait, ask; then promote while requests run.

Started by hack/demo, which has prepared the environment.
"""

import argparse
import base64
import json
import os
import shlex
import shutil
import signal
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from rich.text import Text

from devstack import smollm
from devstack.cache import CACHE
from devstack.load import RequestLoop, Tally
from devstack.registry import set_alias
from devstack.stack import ROOT, Stack
from devstack.terminal import CommandFailed, Shell, chapter, console, say, step, typed, until
from devstack.waits import waiting

MODEL = "support-bot"
ALIAS = "champion"
QUESTION = smollm.QUESTION


def main() -> None:
    """Parse the command line, run the story, leave nothing behind."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A shell that starts the demo in the background has SIGINT ignored;
    # Ctrl-C must clean up there, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["TQDM_DISABLE"] = "1"  # Bars of libraries would tear the demo's own lines.
    started = time.monotonic()
    stack = Stack(
        ROOT / ".demo",
        provider=arguments.provider,
        context=arguments.context,
        image=arguments.image,
    )
    try:
        with stack:
            demo = Demo(stack)
            demo.play()
            console.print(f"\n[bold green]Done[/] in {time.monotonic() - started:.0f} s.")
            if arguments.keep:
                keep(demo)
            stop(stack)
        stack.remove()
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything that the demo started has been stopped.")
        sys.exit(130)
    except (CommandFailed, RuntimeError, OSError) as error:
        console.print(Text("\nThe demo failed: ", style="bold red"), Text(str(error)))
        console.print(f"What it wrote is below {stack.folder}: {', '.join(stack.left())}")
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="stay up after the story, until Ctrl-C")
    parser.add_argument("--provider", choices=("auto", "local", "kind", "context"), default="auto")
    parser.add_argument(
        "--context",
        help="use this context of your KUBECONFIG instead of a cluster of the demo's own",
    )
    parser.add_argument(
        "--image",
        help=(
            "the node's image in a kind cluster, also KIND_IMAGE; else kind's own, or one made here"
        ),
    )
    arguments = parser.parse_args()
    if arguments.context:
        arguments.provider = "context"
    return arguments


def stop(stack: Stack) -> None:
    """End all of it, saying what is waited for."""
    with step("stop everything") as now:
        stack.stop(progress=now)


def keep(demo: "Demo") -> None:
    """Say how to use what runs, and wait for Ctrl-C."""
    file = demo.write_exports()
    chapter("Yours to try, until Ctrl-C")
    say("In another terminal, from this folder:")
    typed(f". {file.relative_to(ROOT)}")
    for command in (
        "kubectl get llmd,llmkey,pods",
        as_curl("$URL", "$KEY"),
        f"python -m devstack.registry alias {MODEL} {ALIAS} 1",
    ):
        typed(command)
    say(f"MLflow's pages: {demo.stack.mlflow.uri}")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print()
    finally:
        file.unlink()  # It holds a key.


def question() -> dict[str, object]:
    """The body of the demo's request."""
    return {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": QUESTION}]}


def as_curl(url: str, key: str) -> str:
    """The demo's request as a person types it; `url` and `key` may be variables of the shell."""
    return (
        f'curl -s {url}/v1/chat/completions -H "Authorization: Bearer {key}" '
        f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(question()))}"
    )


def send(url: str, key: str) -> httpx.Response:
    """The same request, sent without curl, so that the demo needs none."""
    with httpx.Client(timeout=120, trust_env=False) as client:
        return client.post(
            f"{url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json=question(),
        )


def message(deployment: dict[str, Any]) -> str:
    """What an LLMDeployment says of itself."""
    conditions = deployment.get("status", {}).get("conditions", [])
    return next(
        (str(each["message"]) for each in conditions if each["type"] == "Ready"),
        "not seen by the operator yet",
    )


def pod_state(pod: dict[str, Any]) -> str:
    """One pod in a few words: what its containers wait for,
    else why it is not ready, else that it is."""
    name = pod["metadata"]["name"]
    status = pod.get("status", {})
    if "deletionTimestamp" in pod["metadata"]:
        return f"{name} ends"
    first = status.get("initContainerStatuses", [])
    for container in [*first, *status.get("containerStatuses", [])]:
        state = container.get("state", {})
        if reason := state.get("waiting", {}).get("reason"):
            if reason != "PodInitializing":
                return f"{name}: {reason}"
        elif (
            "running" in state and container in first and not container.get("ready")
        ):  # Ready: one that stays.
            return f"{name}: {container['name']} runs"
        elif "running" in state and not container.get("ready"):
            return f"{name}: {container['name']} runs, not ready yet"
    conditions = {each["type"]: each for each in status.get("conditions", [])}
    if conditions.get("Ready", {}).get("status") == "True":
        return f"{name} is ready"
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"{name}: {scheduled.get('message') or scheduled.get('reason')}"
    return f"{name}: {status.get('phase', 'Pending')}"


class Demo:
    """The chapters, in order."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def play(self) -> None:
        """All of it."""
        self.set_the_stage()
        self.install_the_operator()
        self.deploy_the_model()
        self.ask()
        self.promote()
        self.show_the_history()

    def set_the_stage(self) -> None:
        chapter("1  A Kubernetes control plane, an MLflow server and a node, on this machine")
        with step("a real instruction-tuned model: SmolLM2-135M-Instruct as safetensors") as now:
            self.version_1 = smollm.make(CACHE / "models" / "smollm2-135m-instruct", progress=now)
            self.version_2 = smollm.make_variant(
                self.version_1, CACHE / "models" / "smollm2-135m-pirate"
            )
        with step(
            "control plane (etcd, API server, controllers, scheduler), MLflow server, process node"
        ) as now:
            self.stack.start(progress=now)
        if shutil.which("g++") is None:
            say(
                "There is no g++ here to compile the runtime's kernels: the model will answer"
                " several times slower."
            )
        self.exports = {
            "KUBECONFIG": str(self.stack.cluster.kubeconfig),
            "MLFLOW_TRACKING_URI": self.stack.mlflow.uri,
            "PYTHONPATH": str(ROOT / "hack"),
        }
        # kubectl and helm of the cluster, then python and llm-runtime of the environment.
        self.programs = [*filter(None, [self.stack.cluster.programs]), Path(sys.executable).parent]
        path = os.pathsep.join([*map(str, self.programs), os.environ.get("PATH", os.defpath)])
        unseen = {"PATH": path, "KUBECACHEDIR": self.stack.cluster.environment()["KUBECACHEDIR"]}
        self.shell = Shell({**self.exports, **unseen})
        for name, value in self.exports.items():
            typed(f"export {name}={value}")
        typed(f"export PATH={self.search_path()}")
        self.shell.run("kubectl get nodes")
        say("Register the model in MLflow and let the alias `champion` name version 1:")
        self.shell.run(f"python -m devstack.registry push {MODEL} {self.version_1} --alias {ALIAS}")

    def search_path(self) -> str:
        return os.pathsep.join([*map(str, self.programs), "$PATH"])

    def write_exports(self) -> Path:
        """A file for `.` of a shell: with it,
        every command that the demo shows runs as it stands."""
        file = ROOT / ".demo" / "exports"
        values = {**self.exports, "URL": self.url, "KEY": self.key}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
        file.touch(mode=0o600)
        file.write_text("\n".join([*lines, f'export PATH="{self.search_path()}"', ""]))
        return file

    def install_the_operator(self) -> None:
        chapter("2  Install the operator")
        edits = " ".join(
            f"-e {shlex.quote(f's|{old}|{new}|')}" for old, new in self.stack.install_edits()
        )
        self.shell.run(f"sed {edits} manifests/install.yaml | kubectl apply --server-side -f -")
        with step("operator ready", self.operator):
            self.shell.run(
                "kubectl -n llm-operator-system rollout status deployment --timeout=120s",
                show=False,
            )
        self.shell.run("kubectl -n llm-operator-system get pods")

    def deploy_the_model(self) -> None:
        chapter("3  One LLMDeployment, one ApiKey")
        self.shell.run("cat manifests/samples/support-bot.yaml")
        self.shell.run(
            "kubectl apply -f manifests/samples/support-bot.yaml -f"
            " manifests/samples/web-team-key.yaml"
        )
        wait = f"kubectl wait llmd/{MODEL} --for=condition=Ready --timeout=300s"
        with self.shell.follow(["kubectl", "get", "llmd", "--watch"], self.roll_out):
            self.shell.run(wait, show=False)
        self.shell.run(wait)
        self.shell.run("kubectl get llmd,llmkey,service,pods")

    def ask(self) -> None:
        chapter("4  Ask the model, through the Service, with the generated key")
        secret = "kubectl get secret web-team-llm-key -o jsonpath='{.data.api-key}'"
        self.key = base64.b64decode(
            until(
                lambda: self.shell.run(secret, show=False),
                "the ApiKey's Secret",
                timeout_seconds=60,
            )
        ).decode()
        self.url = self.stack.service_url(MODEL)
        typed(f"KEY=$({secret} | base64 -d)")
        say("The demo sends this request itself, without curl:")
        self.curl()

    def curl(self) -> str:
        """Ask the question, show it as a person would with curl, and show the answer."""
        typed(as_curl(self.url, "$KEY"))
        with waiting(lambda: "  … waiting for the answer", say):
            response = send(self.url, self.key)
        if not response.is_success:
            raise CommandFailed(
                f"the model's endpoint answered {response.status_code}: {response.text}"
            )
        answer = str(response.json()["choices"][0]["message"]["content"])
        console.print(Text(response.text.strip(), style="dim"))
        console.print(Text(answer, style="bold yellow"))
        return answer

    def roll_out(self) -> str:
        """What the LLMDeployment and its pods are at, in one line."""
        return self.state("default", "llmd,pods")

    def operator(self) -> str:
        """What the operator's pods are at, in one line."""
        return self.state("llm-operator-system", "pods")

    def state(self, namespace: str, kinds: str) -> str:
        try:
            found = json.loads(
                self.shell.run(f"kubectl -n {namespace} get {kinds} -o json", show=False)
            )["items"]
        except CommandFailed:
            return "the API server does not answer"
        return (
            "; ".join(pod_state(each) if each["kind"] == "Pod" else message(each) for each in found)
            or "no pods yet"
        )

    def promote(self) -> None:
        chapter("5  Promote version 2 while clients keep asking")
        say(
            "Version 2 is the same model with two turns of another character baked into its chat"
            " template."
        )
        self.shell.run(f"python -m devstack.registry push {MODEL} {self.version_2}")
        loop = RequestLoop(self.url, self.key, MODEL, QUESTION, clients=1).start()
        try:
            until(
                lambda: loop.tally.requests >= 4,
                "the first requests of the loop",
                timeout_seconds=60,
            )
            say("A client asks in a loop from here on. Move the alias:")
            typed(f"python -m devstack.registry alias {MODEL} {ALIAS} 2")
            moved = time.monotonic()
            set_alias(self.stack.mlflow.uri, MODEL, ALIAS, "2")
            with self.shell.follow(["kubectl", "get", "llmd", "--watch"], self.roll_out):
                self.wait_for_version("2")
            console.print(
                f"[green]✓[/] version 2 serves, {time.monotonic() - moved:.1f} s after the alias"
                " moved"
            )
            self.curl()
            seen = loop.tally.requests
            until(
                lambda: loop.tally.requests >= seen + 6,
                "requests after the switch",
                timeout_seconds=120,
            )
        finally:
            with waiting(lambda: "  … waiting for the end of the last request", say):
                tally = loop.stop()
        self.report(tally)

    def wait_for_version(self, version: str) -> None:
        self.shell.run(
            f"kubectl wait llmd/{MODEL} --for=jsonpath='{{.status.stable.version}}'={version}"
            " --timeout=300s",
            show=False,
        )
        self.shell.run(
            f"kubectl wait llmd/{MODEL} --for=condition=Ready --timeout=300s", show=False
        )

    def report(self, tally: Tally) -> None:
        console.print(
            f"{tally.requests} requests, half of them streams, ran during the roll-out:"
            f" [bold]{len(tally.failures)} failed[/]; median {statistics.median(tally.seconds):.2f}"
            " s. The answers:"
        )
        for answer, count in tally.answers.items():
            console.print(f"  {count:4d} × ", Text(answer, style="yellow"))
        if tally.failures:
            raise CommandFailed(
                "requests failed during the roll-out:\n" + "\n".join(tally.failures[:10])
            )

    def show_the_history(self) -> None:
        chapter("6  The whole story, as kubectl tells it")
        self.shell.run(f"kubectl describe llmd {MODEL}")


if __name__ == "__main__":
    main()
