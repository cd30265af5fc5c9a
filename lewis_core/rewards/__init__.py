"""Rewards: pure functions of parsed text and listener probabilities, and their one TRL adapter."""
