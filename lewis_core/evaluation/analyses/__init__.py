"""What lies behind the numbers: hallucination, uncertainty, harder games, seeing again, examples."""
