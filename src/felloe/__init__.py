"""Felloe: one program that turns the machines you own into one private AI network."""

__version__ = "0.1.0"
