"""Sealing: what leaves a node is readable only by the node that answers, and its answer only by the asker.

HPKE (RFC 9180), Binary HTTP (RFC 9292) and Oblivious HTTP (RFC 9458 and its chunked variant); `sealing` is what the
rest of the program uses. State owned here: a node's sealing keys and what was already opened with them, in memory
only. Must not know: messages' meaning, transports, nodes, the roster, who may ask.
"""
