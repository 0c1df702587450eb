"""The runner of a cluster: pods are Kubernetes' own, in one namespace, and the cluster has the last word on what a pod may be.

What is asked and answered is cluster's affair, what the answers mean kubelet's. Neither what happens to a pod nor what it
writes is asked for again and again: both are watched, and a watch that ends, breaks or is too old is begun again.

Pods are ours that were begun here: by the label app.kubernetes.io/managed-by, which what kubectl makes of a composed manifest has
too, and by the mark of their creation. `list` tells those alone, and none but those is ever stopped.

A name is asked for, and may be another pod's by then. So a runner remembers the uid of what it began, and takes no other for it;
and whose a log is, it asks once the log has begun to come.
"""

from __future__ import annotations

import importlib
import math
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from sidecar.errors import ConfigurationError, DeadlinePassed, Fault, ParametersError, SourceMissing
from sidecar.session import kubelet
from sidecar.session.cluster import MARK, Cluster, Failed, TooLate, Trouble
from sidecar.session.kubelet import Told
from sidecar.session.pod import GRACE, is_name
from sidecar.session.runner import ENDED, Manifest, Status

MANAGED, OURS = "app.kubernetes.io/managed-by", "sidecar"
PATIENCE = 30.0
# How long a pod that is stopped may take beyond its grace: until its node has heard of it, and its volumes are gone.
_GOING = 120.0
# What a container wrote comes to its end a little before its end is told.
_MOMENT = 1.0


class KubernetesRunner:
    """Runs pods in `namespace`: that of the context, unless given.

    The cluster is that of `client`, an ApiClient of the kubernetes package; or of a `context` of a `kubeconfig`; or, without
    either, the one that kubectl would ask, or in whose pod this runs. A request that fails for a reason that may pass is made
    again for up to `patience` seconds.
    """

    # Many clusters take none yet, and which do is not to be asked.
    image_volumes = False

    def __init__(
        self, namespace: str = "", *, client: Any = None, kubeconfig: str = "", context: str = "", patience: float = PATIENCE
    ) -> None:
        if client is not None and (kubeconfig or context):
            raise ConfigurationError("a client has its cluster already: expected no kubeconfig and no context beside it")
        if client is None:
            client, known = _configured(kubeconfig, context)
            namespace = namespace or known
        namespace = namespace or "default"
        if not is_name(namespace) or "." in namespace:
            # It becomes a part of an address.
            raise ConfigurationError(f"expected a namespace of lower-case letters, digits and '-', not {namespace!r}")
        self._patience = patience
        self._cluster = Cluster(client, namespace, patience)
        # By the name, the uid of each pod that was begun here and not stopped.
        self._begun: dict[str, str] = {}

    @property
    def namespace(self) -> str:
        """Where its pods are."""
        return self._cluster.namespace

    def start(self, pod: Manifest) -> None:
        """Begin the pod, and return (see runner.Runner); the cluster goes on from there."""
        mark = str(uuid.uuid4())
        begun = self._cluster.create(_marked(pod, mark), mark)["metadata"]
        self._begun[begun["name"]] = begun["uid"]

    def status(self, name: str) -> Status:
        """Return how a pod stands."""
        return kubelet.status_of(self._pod(name))

    def wait(self, name: str, timeout: float | None = None) -> Status:
        """Return when a pod has ended; SourceMissing where it is removed before that."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pod = None
        try:
            with closing(self._cluster.states(self._pod(name, deadline), deadline)) as states:
                for pod, _ in states:
                    status = kubelet.status_of(pod)
                    if status.phase in ENDED:
                        return status
        except TooLate:
            why = kubelet.why_waiting(kubelet.status_of(pod)) if pod else "the cluster does not answer"
            raise DeadlinePassed(f"pod {name} has not ended within {timeout:g} s: {why}", name) from None
        raise SourceMissing(f"pod {name} was removed while it was waited for")

    def logs(self, name: str, container: str, *, follow: bool = False) -> Iterator[bytes]:
        """Yield what a container wrote, as far as the cluster keeps it; to `follow` is to go on until it has ended for good."""
        pod = self._pod(name)
        names = kubelet.containers(pod)
        if container not in names:
            raise SourceMissing(f"there is no container {container} in pod {name}", names)
        return self._follow(pod, container) if follow else self._kept(pod, container, Told())

    def stop(self, name: str, grace: float | None = None) -> Status:
        """End a pod, remove it, and return how it ended; DeadlinePassed where its node does not let go of it.

        A grace below a second is one: with none, Kubernetes forgets a pod whose containers may still run.
        """
        pod = self._pod(name)
        if not _is_ours(pod):
            raise ConfigurationError(
                f"pod {name} is none of ours, for its label {MANAGED} is not {OURS}, or its annotation {MARK} is missing: "
                "it is left alone"
            )
        seconds = None if grace is None else max(1, math.ceil(grace))
        if not self._cluster.delete(name, pod["metadata"]["uid"], seconds):
            raise self._cluster.missing(name)
        self._begun.pop(name, None)
        given = pod["spec"].get("terminationGracePeriodSeconds", GRACE) if seconds is None else seconds
        try:
            with closing(self._cluster.states(pod, time.monotonic() + given + _GOING)) as states:
                gone, _ = deque(states, 1).pop()
        except TooLate:
            raise DeadlinePassed(f"pod {name} is being deleted, and its node has not let go of it yet", name) from None
        return kubelet.end_of(gone)

    def list(self) -> list[Status]:
        """Return the pods that are ours, by name."""
        found = filter(_is_ours, self._cluster.labelled(f"{MANAGED}={OURS}"))
        return sorted(map(kubelet.status_of, found), key=lambda each: each.name)

    # --- logs

    def _kept(self, pod: Manifest, container: str, told: Told, *, follow: bool = False) -> Iterator[bytes]:
        """Yield what is kept of the life before, then what is of the last one; Unreachable."""
        if kubelet.keeps_former(pod, container):
            yield from self._told(pod, container, told, former=True)
        yield from self._told(pod, container, told, follow=follow)

    def _told(self, pod: Manifest, container: str, told: Told, *, former: bool = False, follow: bool = False) -> Iterator[bytes]:
        """Yield one life's log; where the connection breaks, go on from there."""
        name, trouble = pod["metadata"]["name"], Trouble(self._patience)
        while True:
            began = time.monotonic()
            try:
                parts = self._cluster.log(name, container, since=told.since, former=former, follow=follow)
                with closing(parts):
                    if next(parts, None) is None or not self._is_there(pod):
                        return
                    for fresh in told.fresh(parts):
                        trouble.heard()
                        yield fresh
                return
            except Failed as failed:
                if time.monotonic() - began >= _MOMENT:
                    trouble.over()
                try:
                    trouble.wait(failed)
                except Failed:
                    raise self._cluster.told(failed, f"what {container} of pod {name} wrote cannot be read") from None

    def _follow(self, pod: Manifest, container: str) -> Iterator[bytes]:
        told, heard, deadline = Told(), 0, None
        while True:
            over = False
            try:
                with closing(self._cluster.states(pod, deadline)) as states:
                    for pod, removed in states:
                        over = removed or kubelet.is_over(pod, container)
                        if over or kubelet.lives(pod, container) > heard:
                            break
            except TooLate:
                heard -= 1  # It runs on: its log was cut off.
            lives = kubelet.lives(pod, container)
            if lives > heard:
                yield from self._kept(pod, container, told, follow=True)
                heard = lives
                found = self._cluster.find(pod["metadata"]["name"])
                if found is None or found["metadata"]["uid"] != pod["metadata"]["uid"]:
                    return
                pod = found
                deadline = time.monotonic() + _MOMENT if kubelet.is_running(pod, container) else None
            elif over:
                return

    def _pod(self, name: str, deadline: float | None = None) -> Manifest:
        # A name becomes a part of an address, where `..` or nothing would be all pods.
        if not is_name(name):
            raise self._cluster.missing(name)
        found = self._cluster.get(name, deadline)
        if self._begun.get(name, found["metadata"]["uid"]) != found["metadata"]["uid"]:
            raise SourceMissing(f"pod {name} that was begun here is gone: another one has its name")
        return found

    def _is_there(self, pod: Manifest) -> bool:
        found = self._cluster.find(pod["metadata"]["name"])
        return found is not None and found["metadata"]["uid"] == pod["metadata"]["uid"]


def _is_ours(pod: Manifest) -> bool:
    metadata = pod["metadata"]
    return metadata.get("labels", {}).get(MANAGED) == OURS and MARK in metadata.get("annotations", {})


def as_v1pod(manifest: Manifest) -> Any:
    """Return a pod as a V1Pod of the kubernetes package, for code that is written for that; ParametersError with every field that
    its version of Kubernetes does not know.

    Back to plain data (`ApiClient().sanitize_for_serialization`), it is the manifest again.
    """
    client = _package("kubernetes.client")
    from pydantic import ValidationError

    try:
        pod = client.V1Pod.model_validate(manifest)
    except ValidationError as error:
        raise ParametersError(
            Fault("pod", _place(each["loc"]), str(each["msg"])) for each in error.errors(include_url=False, include_input=False)
        ) from None
    back = client.ApiClient(client.Configuration()).sanitize_for_serialization(pod)
    if faults := [Fault("pod", place, "is not kept by this version of the client") for place in _lost(manifest, back, "")]:
        raise ParametersError(faults)
    return pod


def _place(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path).lstrip(".")


def _lost(given: object, kept: object, place: str) -> Iterator[str]:
    """Yield the places of what is not the same in both; what is null is not there."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key in (*given, *(each for each in kept if each not in given)):
            yield from _lost(given.get(key), kept.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _lost(one, other, f"{place}[{number}]")
    elif given != kept or isinstance(given, bool) != isinstance(kept, bool):
        yield place


def _marked(pod: Manifest, mark: str) -> Manifest:
    """Return a pod that is ours and of one creation; ParametersError where it says that it is somebody else's, or has no name."""
    metadata = pod.get("metadata") if isinstance(pod, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise ParametersError([Fault("pod", "metadata.name", "expected, it is missing")])
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if labels.get(MANAGED, OURS) != OURS:
        raise ParametersError([Fault("pod", f"metadata.labels.{MANAGED}", f"expected {OURS}, or none: what we begin is ours")])
    return {
        **pod,
        "metadata": {**metadata, "labels": {**labels, MANAGED: OURS}, "annotations": {**annotations, MARK: mark}},
    }


# --- which cluster -----------------------------------------------------------------------------------------------------


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigurationError("kubernetes is not installed: pip install 'sidecar-toolkit[kubernetes]'") from None


def _configured(kubeconfig: str, context: str) -> tuple[Any, str]:
    """Return a client of the cluster that is meant, and its namespace, "" where none is said."""
    client, config = _package("kubernetes.client"), _package("kubernetes.config")
    import yaml

    configuration = client.Configuration()
    # We make requests again by rules that know what is safe to be asked twice; a connection that is dead is to be noticed.
    configuration.retries, configuration.keep_alive = False, True
    file = {"config_file": kubeconfig or None}
    try:
        contexts, current = config.list_kube_config_contexts(**file)
        (meant,) = [each for each in contexts if each["name"] == context] or [current]
        found = config.new_client_from_config(
            **file, context=context or None, persist_config=False, client_configuration=configuration
        )
        return found, str(meant["context"].get("namespace") or "")
    except config.ConfigException as error:
        if not kubeconfig and not context:
            try:
                config.load_incluster_config(client_configuration=configuration)
                return client.ApiClient(configuration), _own_namespace()
            except config.ConfigException:
                pass
        raise ConfigurationError(f"no cluster is configured: {error}") from None
    except (yaml.YAMLError, OSError, ValueError, KeyError, TypeError) as error:
        # Not what it says: that may be a line of the file.
        raise ConfigurationError(f"the kubeconfig cannot be read ({type(error).__name__})") from None


def _own_namespace() -> str:
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
            return file.read().strip()
    except OSError:
        return ""
