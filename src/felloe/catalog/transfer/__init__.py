"""Fetches the files of a model from other nodes, many at once, and answers theirs.

Owns what is fetched now and which peers have lied. Must not know how bytes travel, which nodes there are or what is
approved: those come in through `Peer` and through functions.
"""
