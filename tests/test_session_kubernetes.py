"""The runner of a cluster: what every runner owes, against a simulated API server whose pods really run; and what is its own.

No cluster took part. The server is kubernetes_api's: it looks at every request, and refuses what a real one would by its schemas.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_api import Api
from processes import HANG
from session_contract import Contract, container, mount, of, pod, said

from sidecar.session.kubernetes import KubernetesRunner
from sidecar.session.runner import Runner

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with Api(tmp_path, TOKEN) as api:
        yield api
    assert api.wrong == []


@pytest.fixture
def runner(api: Api) -> KubernetesRunner:
    return KubernetesRunner("sessions", client=api.client(), patience=5)


class TestOnACluster(Contract):
    """What every runner owes; but for what a cluster does not keep."""

    @pytest.fixture
    def base(self) -> str:
        return "host"

    def test_what_fails_is_begun_again_until_it_does_not_and_its_volumes_stay(
        self, runner: Runner, begin: Any, base: str
    ) -> None:
        # As the contract has it, but for the log: of three lives a cluster keeps two.
        script = "echo life >> /v/lives; echo $(wc -l < /v/lives); [ $(wc -l < /v/lives) -gt 2 ] || exit 4"
        one = container("one", base, script.replace("$", "$$"), volumeMounts=[mount("v", "/v")])
        name = begin(pod(one, restartPolicy="OnFailure"))
        status = runner.wait(name, HANG)
        assert status.phase == "Succeeded"
        assert (of(status, "one").exit, of(status, "one").restarts) == (0, 2)
        assert said(runner, name, "one").split() == ["2", "3"]
