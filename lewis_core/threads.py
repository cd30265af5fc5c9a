"""How idle threads of numeric libraries wait. Imports no torch: it must be set before torch is loaded."""

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
"""Environment: threads spin for some microseconds, then sleep.

A pass of a small model is thousands of parallel regions, and waking a sleeping thread for each costs more than the
second thread gains; spinning for long takes the cores from others. A training step of the pocket model on 2 cores:
asleep at once 2.2 s, with one thread 1.8 s, with 3,000 spins 1.4 s, with 10,000 1.3 s; with another busy process on one
of the cores 2.3 s, -, 3.1 s, 5.5 s.
"""
