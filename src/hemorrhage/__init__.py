"""Hemorrhage bench: how a language model bleeds when it is altered or decoded differently.

The steps follow one another as the sub-packages calibrate, compress, evaluate, decode, analyze;
``docs/ARCHITECTURE.md`` is the map.
"""

import os

# Threads that have nothing to do spin before they sleep: torch's and OpenBLAS's, which take turns, on the same cores.
# By default a calibration takes longer on two cores than on one. Both libraries read these when they are loaded.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
