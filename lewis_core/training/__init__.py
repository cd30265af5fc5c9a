"""GRPO training of the speaker through TRL."""
