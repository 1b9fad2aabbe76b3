"""An S3 store on loopback: moto's server, whose objects live in its memory,
or versitygw over a folder."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devstack.ports import free_port
from devstack.processes import Child, answers, wait_until

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "testsecret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
BUCKET = "models"


@contextmanager
def s3_store(folder: Path, versitygw: Path | None = None) -> Iterator[dict[str, str]]:
    """A store with the bucket `models`;
    yields what a client needs in its environment. None: moto's."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    if versitygw:
        (folder / "objects" / BUCKET).mkdir(parents=True)
        keys = ("--access", KEYS["AWS_ACCESS_KEY_ID"], "--secret", KEYS["AWS_SECRET_ACCESS_KEY"])
        command = [str(versitygw), *keys, "--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive"]
        command += ["--health", "/health", "posix", str(folder / "objects")]
    else:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    child = Child("S3 store", command, folder / "store.log", env=KEYS)
    try:
        health = f"{uri}/health" if versitygw else f"{uri}/moto-api/"
        wait_until(child, lambda: answers(health), timeout_seconds=60)
        environment = {**KEYS, "MLFLOW_S3_ENDPOINT_URL": uri}
        if not versitygw:
            client(environment).create_bucket(Bucket=BUCKET)
        yield environment
    finally:
        child.stop()


def client(environment: Mapping[str, str]) -> Any:
    """boto3's client of the store."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=environment["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )
