"""Offline: interactions -> dataset; elastic model; trainer; evaluator."""

import os

# Read once, when torch loads OpenMP: how long an idle thread spins before it sleeps. By default it spins so long that
# training all but stops beside other work; without any spinning it is half as fast (docs/log.md has the figures).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
