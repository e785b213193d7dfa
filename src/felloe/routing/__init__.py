"""Which replica answers a request, who waits for it, and how a broken answer goes on elsewhere.

Owns the admission queue of this node, the streams that this node asked others for, and their counts. Must not know
HTTP, API keys, how engines run, or how messages reach another node.
"""
