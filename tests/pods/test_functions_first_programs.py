"""The first programs that the page of functions begins with, each in the image of its runtime."""

from __future__ import annotations

import secrets

import pytest
from containers import Machine, image
from test_functions_images import RUNTIMES, TRUSTED, UNMASKED

from sidecar.web.page import EXAMPLES


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_first_program_of_a_language_runs_as_it_stands(machine: Machine, runtime: str) -> None:
    source = EXAMPLES[runtime.partition("-")[0]]
    name = f"first-{secrets.token_hex(4)}"
    script = 'printf %s "$1" | /opt/function_proxy'
    options = ["run", "--rm", "--name", name, *TRUSTED, UNMASKED, "--entrypoint=sh"]
    ran = machine.podman(*options, image(f"runtime-{runtime}"), "-c", script, "sh", source)
    assert ran.stdout.splitlines() == [f"{n} squared is {n * n}" for n in range(1, 11)]
    assert ran.stderr == ""
