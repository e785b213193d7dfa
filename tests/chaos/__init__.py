"""The chaos suite: a real network under load, hit by one fault after the other, judged from the outside.

`python -m chaos` (with `tests` on the path) or `make chaos`. What decides is pure: `schedule` which faults come when,
`invariants` what the records prove, `report` how they read. What acts: `lab` and `switch` (a network of namespaces),
`nodes` and `clients` (child processes), `faults` (apply and undo), `scribe` and `watch` (writes, memory, convergence),
`run` (all of it in order). Times in records are seconds of the machine's monotonic clock, which namespaces share.
"""
