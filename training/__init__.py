"""Offline: interactions -> dataset; elastic model; trainer; evaluator."""

import os

# Read once, when torch loads OpenMP. Idle threads that spin hold the cores that others wait for: with any other work
# on the machine a step took up to ten times as long; threads that sleep cost nothing measurable on an idle one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
