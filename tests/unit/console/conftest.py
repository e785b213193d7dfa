"""Makes the client of the operator API available to the tests of the console."""

from operator_house import client

__all__ = ["client"]
