"""What fits where: the price of a model in bytes, the plan that answers what is wanted, and why something is refused.

Owns nothing: it decides from what it is given. Must not know engines, files, the network or the clock.
"""
