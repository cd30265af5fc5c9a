"""How idle threads of numeric libraries wait. Imports no torch: it must be set before torch is loaded."""

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""Environment: threads spin for some microseconds, then sleep.

A pass of a small model is thousands of parallel regions, and waking a sleeping thread for each costs more than the
second thread gains (measured on 2 cores, a training step of the pocket model: 2.2 s asleep at once, 1.8 s with one
thread, 1.3 s so). Spinning without end takes the cores from the process that is waited for.
"""
