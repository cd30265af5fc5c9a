"""Breaks a training run on purpose, and checks that it ends as an undisturbed one does."""
