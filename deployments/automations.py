"""Set up what the Prefect server does on its own: ``python -m deployments.automations``. Idempotent."""

import sys

from flows.commands import FLOWS
from tasks.automations import ZOMBIES, ensure_zombie_automation


def main() -> int:
    """Create or update; returns the exit status."""
    ensure_zombie_automation(list(FLOWS))
    sys.stdout.write(f"automation {ZOMBIES} watches {len(FLOWS)} flows\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
