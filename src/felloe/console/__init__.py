"""The operator's side of a node: what its owner may see and change, served on a socket only the owner can open.

Owns no state; must not know how anything is carried out: every operation goes through the `Operations` port.
"""
