"""What all tests share."""

from __future__ import annotations

import os

# One thread a process, as on a worker with one CPU; set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
