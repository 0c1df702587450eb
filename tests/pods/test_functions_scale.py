"""The examples of the function service at scale, in real containers: of the Deployment, and of the Service of Knative's as its
policy makes it.

podman plays the Deployment itself, `hostUsers: false` in a user namespace of its own. It knows no `procMount`, so what an engine
of Kubernetes' makes of that is done by a hook; it keeps a Secret in another form than it reads, so that is made for it; and it
would map ports, for which there is no network here: who asks does so in the container.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from containers import GRACE, Machine
from manifests import EXAMPLES, documents
from processes import HANG, until

TOKEN = "a token of the tests"
# Prints what is answered to each of the requests that it is handed: a status, and the body.
ASK = """
import json, sys, urllib.error, urllib.request
for path, token, source in json.loads(sys.argv[1]):
    headers = {"Authorization": "Bearer " + token} if token else {}
    asked = urllib.request.Request("http://127.0.0.1:8080" + path, source.encode() if source else None, headers)
    if source:
        asked.add_header("Content-Type", "text/plain")
    try:
        with urllib.request.urlopen(asked, timeout=100) as answer:
            print(json.dumps([answer.status, answer.read().decode()]))
    except urllib.error.HTTPError as error:
        print(json.dumps([error.code, error.read().decode()]))
"""
UNMASK = """#!/usr/bin/python3
import json, sys
config = json.load(sys.stdin)
config["linux"]["maskedPaths"] = config["linux"]["readonlyPaths"] = []
json.dump(config, sys.stdout)
"""
INVOKE = "/v1/functions/python/invocations"


class Played:
    """A Deployment that podman plays; its one container's service is asked in there."""

    def __init__(self, machine: Machine, deployment: dict[str, Any], *, unmasked: bool = True) -> None:
        self.machine = machine
        self.folder = machine.folder / f"deployment-{secrets.token_hex(4)}"
        self.folder.mkdir()
        made = copy.deepcopy(deployment)
        made["metadata"]["name"] = f"functions-{secrets.token_hex(4)}"
        (container,) = made["spec"]["template"]["spec"]["containers"]
        del container["ports"]
        self.name = f"{made['metadata']['name']}-pod-0-{container['name']}"
        self.manifest = self.folder / "deployment.yaml"
        self.manifest.write_text(json.dumps(made))
        hooks = self._hooks() if unmasked else []
        machine.podman(*hooks, "kube", "play", "--network=none", self.manifest)

    def _hooks(self) -> list[str]:
        hook, hooks = self.folder / "unmask", self.folder / "hooks"
        hook.write_text(UNMASK)
        hook.chmod(0o755)
        hooks.mkdir()
        always = {"version": "1.0.0", "hook": {"path": str(hook)}, "when": {"always": True}, "stages": ["precreate"]}
        (hooks / "unmask.json").write_text(json.dumps(always))
        return ["--hooks-dir", str(hooks)]

    def ask(self, *requests: tuple[str, str, str]) -> list[tuple[int, str]]:
        """Return the status and the body of each answer to (path, token, source); nothing where nobody answers."""
        command = ["/opt/sidecar/bin/python", "-c", ASK, json.dumps(requests)]
        ran = self.machine.podman("exec", self.name, *command, check=False)
        return [(status, body) for status, body in map(json.loads, ran.stdout.splitlines())]

    def wait(self) -> None:
        """Return once its readiness probe succeeds."""
        until(lambda: [status for status, _ in self.ask(("/readyz", "", ""))] == [204], f"it is ready; {self.said()}")

    def said(self) -> str:
        ran = self.machine.podman("logs", self.name, check=False)
        return ran.stdout + ran.stderr

    def sh(self, script: str) -> str:
        return self.machine.podman("exec", self.name, "sh", "-c", script).stdout

    def remove(self) -> None:
        self.machine.podman("kube", "down", self.manifest)
        volumes = self.machine.podman("volume", "ls", "--quiet").stdout.split()
        if volumes:
            self.machine.podman("volume", "rm", "--force", *volumes)


@pytest.fixture
def play(machine: Machine) -> Iterator[Callable[..., Played]]:
    """Plays Deployments on a machine that has users to give to pods, and the Secret that they name."""
    users, secret = machine.folder / "users", machine.folder / "secret"
    users.write_text("containers:1000000:200000\n")
    secret.write_text(json.dumps({"token": base64.b64encode(TOKEN.encode()).decode()}))
    # In the machine's own namespace: outside, nothing changes.
    for path in ("/etc/subuid", "/etc/subgid"):
        machine.run("mount", "--bind", users, path)
    machine.podman("secret", "create", "functions", secret)
    played: list[Played] = []

    def begin(deployment: dict[str, Any], *, unmasked: bool = True) -> Played:
        played.append(Played(machine, deployment, unmasked=unmasked))
        return played[-1]

    yield begin
    for each in played:
        each.remove()
    machine.podman("secret", "rm", "functions")
    for path in ("/etc/subuid", "/etc/subgid"):
        machine.run("umount", path)


def deployment() -> dict[str, Any]:
    (found,) = [each for each in documents(EXAMPLES / "functions-deployment" / "deployment.yaml") if each["kind"] == "Deployment"]
    return found


def of_knative() -> dict[str, Any]:
    """Return the Deployment that Knative makes of its Service, without its own container, as the policy has it changed."""
    (service,) = documents(EXAMPLES / "functions-knative" / "service.yaml")
    template = copy.deepcopy(service["spec"]["template"])
    spec = template["spec"]
    del spec["containerConcurrency"], spec["timeoutSeconds"]
    for key in ("readinessProbe", "livenessProbe"):
        spec["containers"][0][key]["httpGet"]["port"] = 8080
    policy, _ = documents(EXAMPLES / "functions-knative" / "policy.yaml")
    (mutation,) = policy["spec"]["mutations"]
    # An expression of objects in objects is YAML but for the names of their types.
    (change,) = [yaml.safe_load(re.sub(r"\bObject[\w.]*(?=\{)", "", mutation["applyConfiguration"]["expression"]))["spec"]]
    (wanted,) = change.pop("containers")
    assert wanted.pop("name") == spec["containers"][0]["name"]
    spec["containers"][0]["securityContext"] |= wanted.pop("securityContext")
    assert wanted == {}
    labels = {**template["metadata"]["labels"], **policy["spec"]["matchConstraints"]["objectSelector"]["matchLabels"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": service["metadata"]["name"]},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec | change}},
    }


@pytest.mark.parametrize("made", [deployment, of_knative], ids=["functions-deployment", "functions-knative"])
def test_it_becomes_ready_answers_who_knows_the_token_and_nobody_else(
    made: Callable[[], dict[str, Any]], play: Callable[..., Played]
) -> None:
    kubernetes_validate.validate(made(), "1.37", strict=True)
    played = play(made())
    played.wait()
    source = "import os; print(6 * 7, os.getuid())"
    answers = played.ask(("/healthz", "", ""), (INVOKE, "", source), (INVOKE, "wrong", source), (INVOKE, TOKEN, source))
    assert [status for status, _ in answers] == [204, 401, 401, 200]
    answer = json.loads(answers[-1][1])
    assert (answer["status"], answer["stdout"].split()[0]) == ("ok", "42")
    # Root in there is nobody on the machine, and may do three things.
    assert re.match(r"\s*0\s+1000000\s", played.sh("cat /proc/self/uid_map"))
    assert int(played.sh("grep CapBnd /proc/self/status").split()[1], 16) == sum(1 << bit for bit in (5, 6, 7))
    assert "NoNewPrivs:\t1" in played.sh("cat /proc/self/status")
    assert TOKEN not in played.said()


def test_a_pod_that_is_ended_lets_calls_that_run_come_to_their_end(play: Callable[..., Played]) -> None:
    played = play(deployment())
    played.wait()
    machine = played.machine
    (grace,) = [deployment()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]]
    assert grace > GRACE
    ask = json.dumps([(INVOKE, TOKEN, "import time; time.sleep(2)")])
    machine.podman("exec", "--detach", played.name, "/opt/sidecar/bin/python", "-c", ASK, ask)
    until(lambda: "bwrap" in played.sh("cat /proc/[0-9]*/comm 2>/dev/null; true"), "the call runs")
    machine.podman("stop", "--time", str(grace), played.name, seconds=grace + HANG)
    inspected = json.loads(machine.podman("container", "inspect", played.name).stdout)[0]
    assert inspected["State"]["ExitCode"] != 137, "it had to be killed"
    (told,) = [line for line in played.said().splitlines() if INVOKE in line]
    assert f"POST {INVOKE} 200 " in told


def test_where_the_cluster_does_not_unmask_proc_it_never_becomes_ready_and_says_why(play: Callable[..., Played]) -> None:
    played = play(deployment(), unmasked=False)
    until(lambda: "functions cannot be confined here: bwrap: " in played.said(), "it says why")
    assert played.ask(("/readyz", "", "")) == []


def test_knative_sends_a_pod_as_many_calls_as_it_takes_and_waits_longer_than_any_takes() -> None:
    (service,) = documents(EXAMPLES / "functions-knative" / "service.yaml")
    spec = service["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    command = container["command"]
    assert command[command.index("--most") + 1] == str(spec["containerConcurrency"])
    assert spec["timeoutSeconds"] > 60
    assert command[command.index("--port") + 1] == str(container["ports"][0]["containerPort"])


def test_the_autoscaler_the_service_and_the_deployment_mean_the_same_pods() -> None:
    found = {each["kind"]: each for each in documents(Path(EXAMPLES / "functions-deployment" / "deployment.yaml"))}
    made, service, scaler = (found[kind] for kind in ("Deployment", "Service", "HorizontalPodAutoscaler"))
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert made["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    target = {"apiVersion": made["apiVersion"], "kind": made["kind"], "name": made["metadata"]["name"]}
    assert scaler["spec"]["scaleTargetRef"] == target
    # Each apply would have it begin from there again.
    assert "replicas" not in made["spec"]
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert "cpu" in container["resources"]["requests"], "what use is measured against"
    assert [each["targetPort"] for each in service["spec"]["ports"]] == [each["name"] for each in container["ports"]]
