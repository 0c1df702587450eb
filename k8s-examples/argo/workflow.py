"""A workflow of two sessions, as a DAG: the second reads the very bundle that the first has saved, by its id.

python3 workflow.py sidecars         the batteries are the templates' sidecars
python3 workflow.py container-set    battery and application are a containerSet
"""

import sys
from pathlib import Path
from typing import Any

from hera.workflows import DAG, Task, Workflow
from hera.workflows.models import TTLStrategy

from sidecar import __version__
from sidecar.batteries.companion import Around, fuse
from sidecar.session.argo import hera_template
from sidecar.session.compose import COORDINATION, Options, compose

HERE = Path(__file__).parent
AROUND = Around(COORDINATION, "file:///store", "store", tag=__version__)
OPTIONS = Options(read_only=True, wrapper=f"localhost/sidecar/wrapper:{__version__}", cpu="100m", memory="256Mi", disk="10Gi")


def node(name: str, script: str, **more: Any) -> Any:
    """Return the template of a session whose battery has the parameters in NAME.yaml; its output is the bundle's id."""
    battery = fuse((HERE / f"{name}.yaml").read_text(), f"{name}.yaml", AROUND)
    image = f"localhost/sidecar/demo-app:{__version__}"
    session = compose(image, (), [battery], OPTIONS, session=name, command=["sh", "-c", script])
    return hera_template(session, name, outputs={"bundle": f"{COORDINATION}/bundle-id"}, **more)


def workflow(kind: str) -> Workflow:
    in_a_set = kind == "container-set"
    nodes = [
        node("warm", "grep -E ',1[5-9]$' /input/days/week.csv > /output/warm.csv", container_set=in_a_set),
        node(
            "hottest",
            "sort -t, -nk2 /input/days/warm.csv | tail -1 > /output/hottest.csv",
            inputs={"bundle": "WARM"},
            container_set=in_a_set,
        ),
    ]
    made = Workflow(
        name=f"two-nodes-{kind}",
        entrypoint="two-nodes",
        active_deadline_seconds=3600,
        ttl_strategy=TTLStrategy(seconds_after_completion=86400),
        templates=nodes,
    )
    with made, DAG(name="two-nodes"):
        warm = Task(name="warm", template="warm")
        hottest = Task(name="hottest", template="hottest", arguments={"bundle": "{{tasks.warm.outputs.parameters.bundle}}"})
        warm >> hottest
    return made


if __name__ == "__main__":
    print(workflow(sys.argv[1]).to_yaml(), end="")
