"""The composition root: configuration, roles, start and stop. The only place that wires parts to each other.

Owns the home folder and the life of one node; must not decide what a capability's own rules decide.
"""
