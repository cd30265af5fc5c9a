"""What the Prefect server does on its own: runs that show no sign of life are marked as crashed."""

from collections.abc import Sequence
from datetime import timedelta
from typing import cast

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

ZOMBIES = "lewis-zombie-runs"
HEARTBEAT, WITHIN_S = "prefect.flow-run.heartbeat", 120
"""Flows send one every 30 s (``flows.heartbeat_frequency`` in pyproject.toml); with Prefect's own 180 s this would end
healthy runs, so the automation is about our flows only."""
FINAL = frozenset(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed"))


def zombie_automation(flows: Sequence[str], within_s: float = WITHIN_S) -> Automation:
    """A run that neither sends a heartbeat nor ends has lost its process or its machine: mark it as crashed.

    Args:
        flows: Names of the flows that it is about.
        within_s: Silence that is long enough; at least three heartbeats.
    """
    return Automation(
        name=ZOMBIES,
        description=f"Marks runs as crashed whose process sent no heartbeat for {within_s:g} s.",
        enabled=True,
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *FINAL},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": ["flow"], "prefect.resource.name": list(flows)}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=within_s),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"no heartbeat for {within_s:g} s: its process or its machine is gone; run it again, finished "
                "stages are not computed twice",
            )
        ],
    )


def ensure_zombie_automation(flows: Sequence[str], within_s: float = WITHIN_S) -> None:
    """Make the automation, or bring the one that is there up to date."""
    wanted = zombie_automation(flows, within_s)
    try:
        known = cast(Automation, Automation.read(name=ZOMBIES))
    except ValueError:
        wanted.create()
    else:
        wanted.id = known.id
        wanted.update()
