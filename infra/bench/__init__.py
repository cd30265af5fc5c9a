"""Measurements of the engine: the reference's style, the best of stock libraries, and ours, in one process.

    python -m infra.bench all --size 7b --device cuda --out bench/
    python -m infra.bench all --size tiny --device cpu          # seconds: checks that everything runs and agrees

Weights are random, of real size; nothing is downloaded.
"""
