"""Who may approve models, what they have approved, and how every node comes to know it for sure.

Owns `state/catalog/` and `keys/curator.pem`. It knows neither hubs nor the mesh: a catalogue comes as bytes, from
anybody, and The Update Framework (https://theupdateframework.io) decides whether to believe it.
"""
