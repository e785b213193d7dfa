"""Where models come from: references, what they stand for, and the way of their bytes into the store.

Owns no state: what has come is kept by the store. Must not know how a model is run or which node asks.
"""
