"""`PYTHONPATH=hack python -m node --kubeconfig FILE --folder DIR`:
run a process node until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
from pathlib import Path

from node import kubelet
from node.api import Api
from node.node import Node
from node.services import Services
from node.settings import Settings

log = logging.getLogger("node")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m node", description="A Kubernetes node that runs pods as processes."
    )
    parser.add_argument(
        "--kubeconfig", type=Path, default=os.environ.get("KUBECONFIG"), help="an administrator's"
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="volumes and logs; emptied at start"
    )
    parser.add_argument("--name", default="process-node")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="in every container; $(POD_IP)",
    )
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="DIR",
        help="put before PATH in every container",
    )
    parser.add_argument(
        "--taint",
        action="append",
        default=[],
        metavar="KEY=VALUE:EFFECT",
        help="beside other nodes",
    )
    parser.add_argument(
        "--backoff-seconds",
        type=float,
        default=1.0,
        help="the second restart waits so long; doubles",
    )
    parser.add_argument(
        "--sync-seconds",
        type=float,
        default=60.0,
        help="how often mounted ConfigMaps are read anew",
    )
    return parser.parse_args()


def settings(options: argparse.Namespace) -> Settings:
    wrong = [text for text in options.env if "=" not in text]
    if wrong:
        raise SystemExit(f"--env {wrong[0]}: write it as NAME=VALUE")
    return Settings(
        name=options.name,
        folder=options.folder.resolve(),
        environment=dict(text.split("=", 1) for text in options.env),
        path=tuple(str(Path(entry).resolve()) for entry in options.path),
        taints=tuple(options.taint),
        backoff_seconds=options.backoff_seconds,
        sync_seconds=options.sync_seconds,
    )


async def run(kubeconfig: Path, chosen: Settings) -> None:
    """Run the node from its registration to the end of its last pod."""
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    api = Api(kubeconfig)
    node = Node(api, chosen)
    server, port = await kubelet.serve(node, chosen.folder)
    await node.register(port)
    services = Services(api, node)
    node.spawn(services.run())
    log.info("node %s is ready; SIGTERM stops its pods and removes it", chosen.name)
    await stop.wait()
    log.info("stopping %d pods", len(node.pods))
    await node.stop()
    await server.cleanup()
    await api.close()


def main() -> None:
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if options.kubeconfig is None:
        raise SystemExit("which cluster? give --kubeconfig FILE or set KUBECONFIG")
    chosen = settings(options)
    # Pods of an earlier run are started again, so their old files must not be in the way.
    shutil.rmtree(chosen.folder / "pods", ignore_errors=True)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(Path(options.kubeconfig), chosen))


if __name__ == "__main__":
    main()
