"""One run from a recipe to the files of a model."""

import hashlib
import json
import os
import platform
from pathlib import Path

from felloe.learning.corpus import Corpus, read_corpus, standard_library
from felloe.learning.evaluate import Evaluation, evaluate
from felloe.learning.examples import encode_conversations, encode_documents
from felloe.learning.export import export_gguf
from felloe.learning.progress import Finished, Report, Stage
from felloe.learning.recipe import Recipe
from felloe.learning.tokenizer import train_tokenizer, vocabulary_of
from felloe.learning.train import Trained, train

Figures = dict[str, object]


def build(recipe: Recipe, folder: Path, report: Report) -> Figures:
    """Train what `recipe` describes; write `<name>-<quantization>.gguf` and figures.json into `folder`."""
    corpus = read_corpus(standard_library(), recipe.corpus)
    report(Stage("corpus", f"{len(corpus.training)} files, {len(corpus.held_out)} held out"))
    texts = [document.text for document in corpus.training]
    tokenizer = train_tokenizer(texts, recipe.network.vocabulary)
    files = encode_documents(corpus.training, tokenizer)
    chats = encode_conversations(corpus.training, tokenizer)
    report(Stage("tokens", f"{_tokens(files):,} in files, {_tokens(chats):,} in {len(chats):,} chats"))
    trained = train(recipe.network, recipe.training, files + chats, report)
    report(Stage("evaluation", f"{len(corpus.held_out)} held-out files"))
    evaluation = evaluate(
        trained.network,
        encode_documents(corpus.held_out, tokenizer),
        sum(len(document.text.encode()) for document in corpus.held_out),
        recipe.training.window,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model_file = folder / f"{recipe.model.name}-{recipe.quantization}.gguf"
    export_gguf(trained.network, vocabulary_of(tokenizer), recipe.model, recipe.quantization, model_file)
    figures = _figures(corpus, trained, evaluation, model_file)
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    report(Finished(str(model_file), figures))
    return figures


def _tokens(examples: list[list[int]]) -> int:
    return sum(map(len, examples))


def _figures(corpus: Corpus, trained: Trained, evaluation: Evaluation, model_file: Path) -> Figures:
    return {
        "held_out_loss": round(evaluation.loss, 4),
        "held_out_perplexity": round(evaluation.perplexity, 2),
        "held_out_bits_per_byte": round(evaluation.bits_per_byte, 4),
        "held_out_files": len(corpus.held_out),
        "held_out_tokens": evaluation.tokens,
        "held_out_bytes": evaluation.text_bytes,
        "parameters": trained.network.parameter_count(),
        "training_files": len(corpus.training),
        "training_steps": trained.steps,
        "training_tokens": trained.tokens,
        "training_seconds": round(trained.seconds, 1),
        "machine_cpu_count": os.cpu_count(),
        "machine_architecture": platform.machine(),
        "corpus_sha256": corpus.digest,
        "python_version": corpus.python_version,
        "gguf_file": model_file.name,
        "gguf_bytes": model_file.stat().st_size,
        "gguf_sha256": hashlib.sha256(model_file.read_bytes()).hexdigest(),
    }
