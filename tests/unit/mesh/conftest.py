"""Makes the one-hub network available to the tests of the mesh."""

from mesh_network import network

__all__ = ["network"]
