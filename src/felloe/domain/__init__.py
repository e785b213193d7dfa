"""The field's nouns: ids, requests, models, hardware, the roster, errors, and the ports that siblings meet through.

Owns no state and does no I/O; imports nothing of ours from outside this package.
"""
