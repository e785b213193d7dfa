"""Several hubs acting as one: the network's replicated state, who leads, which nodes are hubs, and how that changes.

Owns the state (members, invitations, keys, hubs) and its copies on disk. Knows nothing of models, prompts or requests:
no request ever waits for anything in here.
"""
