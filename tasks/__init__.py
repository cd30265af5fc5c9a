"""Prefect tasks: thin wrappers around the stages; processes, services and tracking."""
