"""Deployments and settings."""
