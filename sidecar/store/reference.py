"""How people name a bundle, in every command: REPO, REPO@LABEL or REPO@BUNDLE-ID. Pure.

No name holds an `@` or a `:`, and no label has the form of a bundle id, so a reference can be read in one way only, also where
something follows it as in REPO@LABEL:DIR.
"""

from __future__ import annotations

from sidecar.errors import Fault, ParametersError
from sidecar.store.format import check_name, is_id
from sidecar.values import value


@value
class Reference:
    """Which bundle is meant: the one that `label` points at, the one with the id `bundle`, or the latest of `repo`."""

    repo: str
    label: str = ""
    bundle: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.label or self.bundle}".rstrip("@")


def parse_reference(text: str) -> Reference:
    """Return the bundle that REPO, REPO@LABEL or REPO@ID means; ParametersError where `text` is none of them."""
    repo, at, name = text.partition("@")
    try:
        check_name("repository", repo)
        if is_id(name):
            return Reference(repo, bundle=name)
        return Reference(repo, label=check_name("label", name)) if at else Reference(repo)
    except ParametersError as error:
        problem = f"expected REPO, REPO@LABEL or REPO@BUNDLE-ID; {error}"
        raise ParametersError([Fault(f"bundle {text!r}", "", problem)]) from None
