// worker: to come.
