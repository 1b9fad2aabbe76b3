"""Helm 3, built from its Go module (hack/helm3/go.mod)
into the user's cache: many clusters are still run with it."""

from __future__ import annotations

from pathlib import Path

from devstack.goprogram import program

SOURCE = Path(__file__).resolve().parents[1] / "helm3"


def helm3() -> Path:
    """The program; a minute or two the first time. Raises GoProgramError."""
    return program(SOURCE, "helm.sh/helm/v3/cmd/helm")
