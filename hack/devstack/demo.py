"""The demo's story, told in the open: install, apply, wait, ask; then promote a version while requests run.

Started by hack/demo, which has prepared the environment.
"""

import argparse
import base64
import json
import os
import shlex
import signal
import statistics
import sys
import threading
import time
from pathlib import Path

from rich.text import Text

from devstack import smollm
from devstack.cache import CACHE
from devstack.load import RequestLoop, Tally
from devstack.registry import set_alias
from devstack.stack import ROOT, Stack
from devstack.terminal import CommandFailed, Shell, chapter, console, say, step, typed, until

MODEL, ALIAS, QUESTION = "support-bot", "champion", smollm.QUESTION


def main() -> None:
    """Parse the command line, run the story, leave nothing behind."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A shell that starts the demo in the background has SIGINT ignored; Ctrl-C must clean up there, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["TQDM_DISABLE"] = "1"  # Bars of libraries would tear the demo's own lines.
    started = time.monotonic()
    stack = Stack(ROOT / ".demo", provider=arguments.provider, context=arguments.context, image=arguments.image)
    try:
        with stack:
            Demo(stack).play()
            console.print(f"\n[bold green]Done[/] in {time.monotonic() - started:.0f} s.")
            if arguments.keep:
                keep(stack)
            say("Stopping everything …")
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything that the demo started has been stopped.")
        sys.exit(130)
    except (CommandFailed, RuntimeError, OSError) as error:
        console.print(Text("\nThe demo failed: ", style="bold red"), Text(str(error)))
        console.print(f"Logs are below {ROOT / '.demo'}: node.log, cluster/, mlflow/server.log, node/")
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="stay up after the story, until Ctrl-C")
    parser.add_argument("--provider", choices=("auto", "local", "kind", "context"), default="auto")
    parser.add_argument("--context", help="use this context of your KUBECONFIG instead of a cluster of the demo's own")
    parser.add_argument(
        "--image", help="the node's image in a kind cluster, also KIND_IMAGE; else kind's own, or one made here"
    )
    arguments = parser.parse_args()
    if arguments.context:
        arguments.provider = "context"
    return arguments


def keep(stack: Stack) -> None:
    """Say how to use what runs, and wait for Ctrl-C."""
    chapter("Yours to try, until Ctrl-C")
    console.print(f"  export KUBECONFIG={stack.cluster.kubeconfig} MLFLOW_TRACKING_URI={stack.mlflow.uri}")
    console.print("  kubectl get llmd,llmkey,pods")
    console.print(f"  open {stack.mlflow.uri} in a browser, or: python -m devstack.registry alias {MODEL} {ALIAS} 1")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print()


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
        with step("a real instruction-tuned model: SmolLM2-135M-Instruct as safetensors"):
            self.version_1 = smollm.make(CACHE / "models" / "smollm2-135m-instruct", progress=lambda _: None)
            self.version_2 = smollm.make_variant(self.version_1, CACHE / "models" / "smollm2-135m-pirate")
        with step("control plane (etcd, API server, controllers, scheduler), MLflow server, process node"):
            self.stack.start(progress=lambda _: None)
        self.shell = Shell(
            {
                "KUBECONFIG": str(self.stack.cluster.kubeconfig),
                "MLFLOW_TRACKING_URI": self.stack.mlflow.uri,
                "PYTHONPATH": str(ROOT / "hack"),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            }
        )
        typed(f"export KUBECONFIG={self.stack.cluster.kubeconfig}")
        typed(f"export MLFLOW_TRACKING_URI={self.stack.mlflow.uri}")
        self.shell.run("kubectl get nodes")
        say("Register the model in MLflow and let the alias `champion` name version 1:")
        self.shell.run(f"python -m devstack.registry push {MODEL} {self.version_1} --alias {ALIAS}")

    def install_the_operator(self) -> None:
        chapter("2  Install the operator")
        edits = " ".join(f"-e {shlex.quote(f's|{old}|{new}|')}" for old, new in self.stack.install_edits())
        self.shell.run(f"sed {edits} manifests/install.yaml | kubectl apply --server-side -f -")
        with step("operator ready"):
            self.shell.run("kubectl -n llm-operator-system rollout status deployment --timeout=120s", show=False)
        self.shell.run("kubectl -n llm-operator-system get pods")

    def deploy_the_model(self) -> None:
        chapter("3  One LLMDeployment, one ApiKey")
        self.shell.run("cat manifests/samples/support-bot.yaml")
        self.shell.run("kubectl apply -f manifests/samples/support-bot.yaml -f manifests/samples/web-team-key.yaml")
        wait = f"kubectl wait llmd/{MODEL} --for=condition=Ready --timeout=300s"
        with self.shell.follow(["kubectl", "get", "llmd", "--watch"]):
            self.shell.run(wait, show=False)
        self.shell.run(wait)
        self.shell.run("kubectl get llmd,llmkey,service,pods")

    def ask(self) -> None:
        chapter("4  Ask the model, through the Service, with the generated key")
        secret = "kubectl get secret web-team-llm-key -o jsonpath='{.data.api-key}'"
        self.key = base64.b64decode(
            until(lambda: self.shell.run(secret, show=False), "the ApiKey's Secret", timeout_seconds=60)
        ).decode()
        self.url = self.stack.service_url(MODEL)
        typed(f"KEY=$({secret} | base64 -d)")
        self.curl()

    def curl(self) -> str:
        """Ask the question with curl as a person would, and show the answer."""
        messages = f'[{{"role": "user", "content": "{QUESTION}"}}]'
        command = (
            f'curl -s {self.url}/v1/chat/completions -H "Authorization: Bearer $KEY" '
            "-H 'Content-Type: application/json' "
            f'-d \'{{"model": "{MODEL}", "temperature": 0, "messages": {messages}}}\''
        )
        typed(command)
        response = Shell({**self.shell.env, "KEY": self.key}).run(command, show=False)
        answer = str(json.loads(response)["choices"][0]["message"]["content"])
        console.print(Text(response.strip(), style="dim"))
        console.print(Text(answer, style="bold yellow"))
        return answer

    def promote(self) -> None:
        chapter("5  Promote version 2 while clients keep asking")
        say("Version 2 is the same model with two turns of another character baked into its chat template.")
        self.shell.run(f"python -m devstack.registry push {MODEL} {self.version_2}")
        loop = RequestLoop(self.url, self.key, MODEL, QUESTION, clients=1).start()
        try:
            until(lambda: loop.tally.requests >= 4, "the first requests of the loop", timeout_seconds=60)
            say("A client asks in a loop from here on. Move the alias:")
            typed(f"python -m devstack.registry alias {MODEL} {ALIAS} 2")
            moved = time.monotonic()
            set_alias(self.stack.mlflow.uri, MODEL, ALIAS, "2")
            with self.shell.follow(["kubectl", "get", "llmd", "--watch"]):
                self.wait_for_version("2")
            console.print(f"[green]✓[/] version 2 serves, {time.monotonic() - moved:.1f} s after the alias moved")
            self.curl()
            seen = loop.tally.requests
            until(lambda: loop.tally.requests >= seen + 6, "requests after the switch", timeout_seconds=120)
        finally:
            tally = loop.stop()
        self.report(tally)

    def wait_for_version(self, version: str) -> None:
        self.shell.run(
            f"kubectl wait llmd/{MODEL} --for=jsonpath='{{.status.stable.version}}'={version} --timeout=300s",
            show=False,
        )
        self.shell.run(f"kubectl wait llmd/{MODEL} --for=condition=Ready --timeout=300s", show=False)

    def report(self, tally: Tally) -> None:
        console.print(
            f"{tally.requests} requests, half of them streams, ran during the roll-out: "
            f"[bold]{len(tally.failures)} failed[/]; median {statistics.median(tally.seconds):.2f} s. The answers:"
        )
        for answer, count in tally.answers.items():
            console.print(f"  {count:4d} × ", Text(answer, style="yellow"))
        if tally.failures:
            raise CommandFailed("requests failed during the roll-out:\n" + "\n".join(tally.failures[:10]))

    def show_the_history(self) -> None:
        chapter("6  The whole story, as kubectl tells it")
        self.shell.run(f"kubectl describe llmd {MODEL}")


if __name__ == "__main__":
    main()
