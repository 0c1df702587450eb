"""Pods that tests compose: an application behind the wrapper that an initContainer has installed, and batteries.

All containers are hardened: no capability, a read-only root, and a user that is not root. Each finds the coordination directory
at /coord, input at /data and output at /out; a battery finds the store at /store, the application its wrapper at /shared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from containers import Manifest, image

# Whoever runs what distroless images hold; and the user of our own images.
NONROOT = 65532
SIDECAR = 10001
MEMORY = 32 << 20


def hardened(user: int) -> Manifest:
    """Return the security context of a container that is trusted with nothing."""
    return {
        "runAsUser": user,
        "runAsGroup": user,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def pod(*containers: Manifest, name: str = "composed", restart: str = "Never", volumes: Iterable[Manifest] = ()) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": restart,
            "securityContext": {"runAsUser": SIDECAR, "fsGroup": SIDECAR},
            "volumes": [
                {"name": "wrapper", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
                {"name": "coord", "emptyDir": {}},
                {"name": "data", "emptyDir": {}},
                {"name": "out", "emptyDir": {}},
                {"name": "cluster", "emptyDir": {}},
                {"name": "store", "persistentVolumeClaim": {"claimName": "store"}},
                *volumes,
            ],
            "initContainers": [
                {
                    "name": "wrapper",
                    "image": image("wrapper"),
                    "command": ["/wrap_application", "--install", "/shared"],
                    "securityContext": hardened(NONROOT),
                    "resources": {"limits": {"memory": str(MEMORY)}},
                    "volumeMounts": [{"name": "wrapper", "mountPath": "/shared"}],
                }
            ],
            "containers": list(containers),
        },
    }


def application(name: str, *arguments: str, propagation: str = "None", user: int = SIDECAR, **more: Any) -> Manifest:
    """Return the container of the image `name` that runs `wrap_application -c /coord ARGUMENTS…`."""
    return {
        "name": "application",
        "image": name,
        "command": ["/shared/wrap_application", "-c", "/coord", *arguments],
        "securityContext": hardened(user),
        "resources": {"limits": {"memory": str(MEMORY)}},
        "volumeMounts": [
            {"name": "wrapper", "mountPath": "/shared", "readOnly": True},
            {"name": "coord", "mountPath": "/coord"},
            {"name": "data", "mountPath": "/data", "mountPropagation": propagation},
            {"name": "out", "mountPath": "/out"},
        ],
        **more,
    }


def fuse(*commands: str, options: Iterable[str] = (), privileged: bool = False) -> Manifest:
    """Return the fuse battery with these datamon commands; where it is `privileged`, it may mount."""
    words = ["wrap_datamon", "-c", "/coord", "--store", "file:///store", *options]
    return {
        "name": "fuse",
        "image": image("fuse-sidecar"),
        "command": [*words, *(word for command in commands for word in ("-d", command))],
        "securityContext": {"privileged": True, "runAsUser": 0} if privileged else hardened(SIDECAR),
        "volumeMounts": [
            {"name": "coord", "mountPath": "/coord"},
            {"name": "data", "mountPath": "/data", "mountPropagation": "Bidirectional" if privileged else "None"},
            {"name": "out", "mountPath": "/out"},
            {"name": "store", "mountPath": "/store"},
        ],
    }


def postgres(*, options: Iterable[str] = (), **database: str) -> Manifest:
    """Return the postgres battery of one database, `db`, with these parameters."""
    words = ["wrap_datamon_pg", "-c", "/coord", "--store", "file:///store", *options]
    return {
        "name": "postgres",
        "image": image("pg-sidecar"),
        "command": words,
        "env": [{"name": f"SIDECAR_DATABASE_{key.upper()}", "value": value} for key, value in database.items()],
        "securityContext": hardened(SIDECAR),
        "volumeMounts": [
            {"name": "coord", "mountPath": "/coord"},
            {"name": "cluster", "mountPath": "/pg_stage"},
            {"name": "store", "mountPath": "/store"},
        ],
    }
