"""This machine: its files, child processes and hardware.

Owns no state beyond open locks; must not know what a model, a request or a network is.
"""
