"""The production stack as local processes; ``bash infra/stack.sh`` is its command line.

Read :mod:`infra.stack.parts` for what is started and how, :mod:`infra.stack.processes` for how processes are started,
found again and stopped, and :mod:`infra.stack.database` for PostgreSQL.
"""
