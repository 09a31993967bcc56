"""One rank or several: launcher environment, process group, core binding, supervisor, lockstep, driver. One rank is the ordinary case."""
