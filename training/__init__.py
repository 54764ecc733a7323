"""Offline: interactions -> dataset; elastic model; trainer; evaluator."""

import os

# Read once, when torch loads OpenMP: how long an idle thread spins before it sleeps. By default it spins so long that
# training all but stops beside other work; without any spinning an epoch takes 1.7 times as long (docs/log.md).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
