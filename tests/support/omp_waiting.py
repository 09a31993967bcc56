"""Threads of OpenMP wait asleep: to be imported before anything that loads OpenMP, which reads the variable once.

The teams of the tests outnumber the cores that are free; spinning took most of the suite's CPU. What is measured waits as it does for
users.
"""

from __future__ import annotations

import os
import sys

if not any(word in argument for argument in sys.argv[1:] for word in ("measured", "benchmark")):
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
