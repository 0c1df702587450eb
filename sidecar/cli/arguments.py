"""What may stand behind an option or as an argument, the same in every click command: times, sizes, references to bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sidecar.cli.measures import seconds, size
from sidecar.errors import SidecarError, UsageError

if TYPE_CHECKING:
    from sidecar.store import Reference


class Seconds(click.ParamType):  # type: ignore[type-arg]  # before click 8.4 it takes none
    """A time like 90, 90s, 15m or 2h, in seconds."""

    name = "T"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ARG002
        if isinstance(value, float):
            return value
        return seconds(str(value), param.opts[0] if param else "")


def parse_size(text: str) -> int:
    """Return a number of bytes: 5000, 500M, 10GB in powers of 1000, 10GiB in powers of 1024. click.BadParameter."""
    try:
        return size(text, "it")
    except UsageError as error:
        raise click.BadParameter(str(error).removeprefix("it ").replace("expects", "expected", 1)) from None


def parse_ref(text: str) -> Reference:
    """Return the bundle that REPO, REPO@LABEL or REPO@ID means. click.BadParameter."""
    from sidecar.store import parse_reference  # 30 ms, which not every command that has arguments is to pay

    try:
        return parse_reference(text)
    except SidecarError as error:
        raise click.BadParameter(str(error)) from None
