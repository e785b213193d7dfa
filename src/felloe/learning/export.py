"""Write a trained network, its tokenizer and its chat template as one GGUF file.

Source: the GGUF specification of ggml, and llama.cpp's names for the `llama` architecture.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from felloe.learning.chat import BEGIN, END, PADDING, SPECIAL_TOKENS, TEMPLATE
from felloe.learning.network import Network
from felloe.learning.recipe import ModelCard, NetworkShape
from felloe.learning.tokenizer import PRE_TOKENIZER, Vocabulary

_FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
_TENSOR_NAMES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def export_gguf(network: Network, vocabulary: Vocabulary, card: ModelCard, quantization: str, path: Path) -> None:
    """Write `path` in one step: whoever reads it never sees half a file. Matrices get `quantization`."""
    unfinished = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _add_card(writer, card, quantization)
    _add_shape(writer, network.shape)
    _add_tokenizer(writer, vocabulary)
    for name, weights in gguf_tensors(network).items():
        _add_tensor(writer, name, weights, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def gguf_tensors(network: Network) -> dict[str, NDArray[np.float32]]:
    """The weights in float32 under llama.cpp's names, in its order of rotary rows."""
    shape = network.shape
    state = {name: tensor.float().numpy() for name, tensor in network.state_dict().items()}
    tensors = {
        "token_embd.weight": state["embedding.weight"],
        "output_norm.weight": state["norm.weight"],
    }
    rotary_heads = {"attention.query": shape.heads, "attention.key": shape.key_value_heads}
    for layer in range(shape.layers):
        for ours, theirs in _TENSOR_NAMES.items():
            weights = state[f"layers.{layer}.{ours}.weight"]
            if ours in rotary_heads:
                weights = permute_rotary_rows(weights, rotary_heads[ours])
            tensors[f"blk.{layer}.{theirs}.weight"] = weights
    return tensors


def permute_rotary_rows(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder rows [heads * head_width, ...] for llama.cpp, which rotates neighbours (0, 1), (2, 3), ...

    The network rotates row i with row i + head_width / 2. A file in the wrong order loads without an error
    and answers badly.
    """
    by_pair = weights.reshape(heads, 2, -1, *weights.shape[1:])
    return by_pair.swapaxes(1, 2).reshape(weights.shape)


def _add_card(writer: Any, card: ModelCard, quantization: str) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(card.name)
    writer.add_description(card.description)
    writer.add_license(card.license)
    writer.add_file_type(_FILE_TYPES[quantization])


def _add_shape(writer: Any, shape: NetworkShape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)


def _add_tokenizer(writer: Any, vocabulary: Vocabulary) -> None:
    kinds = [
        gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in vocabulary.tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(kinds)
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(vocabulary.id_of(BEGIN))
    writer.add_eos_token_id(vocabulary.id_of(END))
    writer.add_eot_token_id(vocabulary.id_of(END))
    writer.add_pad_token_id(vocabulary.id_of(PADDING))
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def _add_tensor(writer: Any, name: str, weights: NDArray[np.float32], quantization: str) -> None:
    if weights.ndim == 1:
        writer.add_tensor(name, weights)
    elif quantization == "f16":
        writer.add_tensor(name, weights.astype(np.float16))
    else:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
