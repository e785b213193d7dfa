"""The model files of this node: taken in, checked, named, listed, removed.

Owns the models folder. Must not know how a model is run, who asks for it or which other nodes have it.
"""
