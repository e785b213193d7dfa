"""Hostile bytes for everything that reads a stranger's: `python -m fuzz --seconds 600` looks for new ones.

A surface is one way in, see `surface.py`; `guided.py` lets coverage choose what to try, `corpus/` keeps what was
interesting once, and `test_fuzz_corpus.py` tries all of that again in every test run.
"""
