"""From text to a model that the network can run: corpus, tokenizer, training, evaluation, GGUF.

Purpose: train small language models from a recipe, so that anyone can rebuild what Felloe ships.
State it owns: none between runs; a run writes its files into the folder that it was given.
It must not know: nodes, networks, markets, or how a model is served. Nothing of the core imports this
package, because it needs the `learn` extra and PyTorch, which most nodes do without.
"""
