"""Runs etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes of this
machine.

Everything lies below one folder (keys, etcd's data, logs, pids, kubeconfig) and listens on
127.0.0.1 on ports that were free, so several control planes run side by side and removing the
folder removes the cluster.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devstack.ports import free_ports

# Services get addresses inside 127.0.0.0/8: every process of a Linux machine may listen there, so
# the process node (hack/node) serves a Service on its real ClusterIP, and no two machines' clusters
# ever meet.
SERVICE_RANGE = "127.96.0.0/16"
READY_SECONDS = 60.0
FRONT_PROXY = "front-proxy-client"
"""The name in the certificate by which the API server tells extension API servers who it is."""
USERS = {
    "admin": ("kubernetes-admin", "system:masters"),
    "controllers": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}


class ControlPlaneError(RuntimeError):
    """The control plane did not start; the message names the program and its log."""


def start(folder: Path, programs: Path, *, detach: bool, progress: Callable[[str], None]) -> Path:
    """Start a fresh control plane below `folder` and return its admin kubeconfig once it answers.

    `programs` holds the binaries of hack/kube. Unless `detach`, the programs end when this process
    ends, however it ends. Raises ControlPlaneError.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    etcd, peer, api = free_ports(3)
    write_keys(folder, programs, api)
    launch = Launcher(folder, programs, detach)
    launch("etcd", etcd_flags(folder, etcd, peer))
    progress("waiting for etcd")
    wait_for(lambda: port_open(etcd), launch, "etcd")
    launch("kube-apiserver", apiserver_flags(folder, etcd, api))
    progress("waiting for kube-apiserver")
    wait_for(lambda: answers(folder, "/readyz"), launch, "kube-apiserver")
    launch("kube-controller-manager", controller_flags(folder))
    launch("kube-scheduler", scheduler_flags(folder))
    # Pods are refused until the controllers have made this account.
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    progress("waiting for kube-controller-manager")
    wait_for(lambda: answers(folder, account), launch, "kube-controller-manager")
    progress(f"Kubernetes is ready after {time.monotonic() - started:.1f} s: {kubeconfig(folder)}")
    return kubeconfig(folder)


def running(folder: Path) -> bool:
    """Whether the control plane of `folder` is alive and answers."""
    return bool(living(folder)) and kubeconfig(folder).exists() and answers(folder, "/readyz")


def stop(folder: Path, *, grace_seconds: float = 1.0) -> None:
    """End the programs recorded in `folder` by pid: SIGTERM, then SIGKILL.
    Does nothing where none runs."""
    for sign, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
        for pid in living(folder):
            os.kill(pid, sign)
        deadline = time.monotonic() + seconds
        while living(folder) and time.monotonic() < deadline:
            time.sleep(0.05)


def kubeconfig(folder: Path, user: str = "admin") -> Path:
    return folder / ("kubeconfig" if user == "admin" else f"{user}.kubeconfig")


class Launcher:
    """Starts one program after another and writes down its pid before anything else can go
    wrong."""

    def __init__(self, folder: Path, programs: Path, detach: bool) -> None:
        self.folder = folder
        self.programs = programs
        self.detach = detach
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "pids").mkdir(exist_ok=True)

    def __call__(self, name: str, flags: dict[str, object]) -> None:
        command = [str(self.programs / name), *(f"--{key}={value}" for key, value in flags.items())]
        # The write end of this pipe closes when we die, even by SIGKILL;
        # hack/kube/support.go ends the program then.
        stdin = subprocess.DEVNULL if self.detach else subprocess.PIPE
        environment = {**os.environ, "KUBE_LIFELINE": "" if self.detach else "stdin"}
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        (self.folder / "pids" / name).write_text(str(process.pid))
        self.processes[name] = process
        _children[process.pid] = process

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def check(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise ControlPlaneError(
                    f"{name} ended with {process.returncode}:\n{tail(self.log(name))}"
                )


# Kept so that their exit status is collected (a zombie would count as alive)
# and their lifelines stay open.
_children: dict[int, subprocess.Popen[bytes]] = {}


def living(folder: Path) -> list[int]:
    """The recorded pids that still run a program of this folder;
    a pid the system gave to another one is left alone."""
    found = []
    for file in sorted((folder / "pids").glob("*")):
        pid = int(file.read_text() or 0)
        child = _children.get(pid)
        if pid and (child is None or child.poll() is None) and str(folder) in command_line(pid):
            found.append(pid)
    return found


def command_line(pid: int) -> str:
    if Path("/proc/self").exists():
        try:
            return (
                Path(f"/proc/{pid}/cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
            )
        except OSError:
            return ""
    return subprocess.run(
        ["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False
    ).stdout


def write_keys(folder: Path, programs: Path, api: int) -> None:
    """Serving certificate, service account key, the front proxy's certificate, one token per user
    and a kubeconfig for each."""
    for name in ("apiserver", "service-account"):
        subprocess.run([programs / "kube", "selfsigned", folder / name], check=True)
    write_front_proxy(folder)
    tokens = {user: secrets.token_urlsafe(24) for user in USERS}
    lines = [f'{tokens[user]},{name},{name},"{group}"' for user, (name, group) in USERS.items()]
    private(folder / "tokens.csv", "\n".join(lines) + "\n")
    for user, token in tokens.items():
        private(kubeconfig(folder, user), json.dumps(config(folder, api, token), indent=2))


def write_front_proxy(folder: Path, name: str = FRONT_PROXY) -> None:
    """The certificate that extension API servers believe, front-proxy.crt and .key, and the
    authority that has signed it, front-proxy-ca.crt."""
    signer = ec.generate_private_key(ec.SECP256R1())
    authority = (
        _certificate("front-proxy-ca", signer)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    client = (
        _certificate(name, key)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "front-proxy-ca.crt").write_bytes(authority.public_bytes(pem))
    (folder / "front-proxy.crt").write_bytes(client.public_bytes(pem))
    private(folder / "front-proxy.key", key.private_bytes(pem, *plain).decode())


def _certificate(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    def named(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("front-proxy-ca"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365))
    )


def private(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)


def config(folder: Path, api: int, token: str) -> dict[str, object]:
    """A kubeconfig; JSON is YAML. The certificate is embedded so that the file can be copied."""
    authority = base64.b64encode((folder / "apiserver.crt").read_bytes()).decode()
    cluster = {"server": f"https://127.0.0.1:{api}", "certificate-authority-data": authority}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": cluster}],
        "users": [{"name": "local", "user": {"token": token}}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local"}}],
        "current-context": "local",
    }


def etcd_flags(folder: Path, client: int, peer: int) -> dict[str, object]:
    return {
        "data-dir": folder / "etcd",
        "listen-client-urls": f"http://127.0.0.1:{client}",
        "advertise-client-urls": f"http://127.0.0.1:{client}",
        "listen-peer-urls": f"http://127.0.0.1:{peer}",
        "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
        "initial-cluster": f"default=http://127.0.0.1:{peer}",
        "unsafe-no-fsync": "true",  # the data is thrown away
        "log-level": "warn",
    }


def apiserver_flags(folder: Path, etcd: int, port: int) -> dict[str, object]:
    return {
        "etcd-servers": f"http://127.0.0.1:{etcd}",
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "secure-port": port,
        "cert-dir": folder,
        "tls-cert-file": folder / "apiserver.crt",
        "tls-private-key-file": folder / "apiserver.key",
        "token-auth-file": folder / "tokens.csv",
        "authorization-mode": "RBAC",
        "allow-privileged": "true",
        "service-cluster-ip-range": SERVICE_RANGE,
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-key-file": folder / "service-account.key",
        "service-account-signing-key-file": folder / "service-account.key",
        "kubelet-preferred-address-types": "InternalIP",
        # It would write 127.0.0.1 into an EndpointSlice, which refuses loopback addresses.
        "endpoint-reconciler-type": "none",
        "profiling": "false",
        # Extension API servers are asked under the name of who asked (docs/autoscaling.md).
        "requestheader-client-ca-file": folder / "front-proxy-ca.crt",
        "requestheader-allowed-names": FRONT_PROXY,
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": folder / "front-proxy.crt",
        "proxy-client-key-file": folder / "front-proxy.key",
    }


def controller_flags(folder: Path) -> dict[str, object]:
    return {
        **client_flags(folder, "controllers"),
        "controllers": "*",
        "use-service-account-credentials": (
            "true"
        ),  # each controller under its own RBAC role, as on a real cluster
        "service-account-private-key-file": folder / "service-account.key",
        "root-ca-file": folder / "apiserver.crt",
        "concurrent-gc-syncs": 50,
        "concurrent-deployment-syncs": 20,
        "concurrent-replicaset-syncs": 20,
        "horizontal-pod-autoscaler-sync-period": "5s",
    }


def scheduler_flags(folder: Path) -> dict[str, object]:
    return client_flags(folder, "scheduler")


def client_flags(folder: Path, user: str) -> dict[str, object]:
    # The rates let a thousand objects converge within a test's patience; port 0 serves nothing.
    own = kubeconfig(folder, user)
    return {
        "kubeconfig": own,
        "leader-elect": "false",
        "secure-port": 0,
        "kube-api-qps": 300,
        "kube-api-burst": 500,
    }


def wait_for(condition: Callable[[], bool], launch: Launcher, name: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        launch.check()
        if time.monotonic() > deadline:
            raise ControlPlaneError(
                f"{name} is not ready after {READY_SECONDS:.0f} s:\n{tail(launch.log(name))}"
            )
        time.sleep(0.05)


def port_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(folder: Path, path: str) -> bool:
    """Whether the API server answers 200 to the administrator."""
    entry = json.loads(kubeconfig(folder).read_text())
    url = entry["clusters"][0]["cluster"]["server"] + path
    request = urllib.request.Request(
        url, headers={"Authorization": f"Bearer {entry['users'][0]['user']['token']}"}
    )
    trusted = ssl.create_default_context(cafile=str(folder / "apiserver.crt"))
    # No proxy: HTTPS_PROXY of the environment must not see loopback.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
    )
    try:
        with opener.open(request, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def tail(log: Path, lines: int = 15) -> str:
    return f"{log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
