"""Models of many architectures to load and weigh: right in every length, and with nothing but zeros inside.

The files are sparse, so even a large one costs a few kilobytes of disk; the engine maps them and computes with zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from felloe.domain.ggml_types import TENSOR_TYPES
from gguf_bytes import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT32, GgufFile, array

_TYPES = {kind.name: number for number, kind in TENSOR_TYPES.items()}


@dataclass(frozen=True)
class Model:
    """The lengths of one model; what an architecture does not have stays 0."""

    architecture: str
    layers: int = 4
    width: int = 512
    heads: int = 8
    kv_heads: int = 2
    head: int = 64
    feed_forward: int = 1536
    vocabulary: int = 8192
    context: int = 32768
    type: str = "Q8_0"
    tied: bool = False
    window: int = 0
    experts: int = 0
    used: int = 0
    expert_length: int = 0
    extra: dict[str, int] = field(default_factory=dict)


class _Writer:
    """Collects metadata and tensors; every tensor follows the one before it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.file = GgufFile()
        self._end = 0
        self.file.metadata["general.architecture"] = (STRING, model.architecture)

    def number(self, key: str, value: int) -> None:
        self.file.metadata[f"{self.model.architecture}.{key}"] = (UINT32, value)

    def real(self, key: str, value: float) -> None:
        self.file.metadata[f"{self.model.architecture}.{key}"] = (FLOAT32, value)

    def numbers(self, key: str, values: list[int]) -> None:
        self.file.metadata[f"{self.model.architecture}.{key}"] = (ARRAY, array(INT32, list(values)))

    def matrix(self, name: str, *lengths: int, type: str = "") -> None:
        kind = TENSOR_TYPES[_TYPES[type or self.model.type]]
        self._tensor(f"{name}.weight", lengths, kind.name)

    def vector(self, name: str, *lengths: int) -> None:
        self._tensor(name, lengths, "F32")

    def norm(self, *names: str, width: int = 0) -> None:
        for name in names:
            self.vector(f"{name}.weight", width or self.model.width)

    def _tensor(self, name: str, lengths: tuple[int, ...], type: str) -> None:
        kind = TENSOR_TYPES[_TYPES[type]]
        elements = 1
        for length in lengths:
            elements *= length
        self.file.tensors.append((name, lengths, _TYPES[type], self._end))
        self._end += -(-elements // kind.block_elements * kind.block_bytes // 32) * 32

    def save(self, path: Path) -> None:
        header = self.file.header()
        start = -(-len(header) // 32) * 32
        with path.open("wb") as stream:
            stream.write(header)
            stream.truncate(start + self._end)


def write(model: Model, path: Path) -> None:
    """One model file of this architecture."""
    writer = _Writer(model)
    _lengths(writer)
    (_word_pieces if model.architecture == "bert" else _words)(writer)
    writer.matrix("token_embd", model.width, model.vocabulary)
    if model.architecture == "bert":
        _bert(writer)
    else:
        writer.norm("token_embd_norm" if model.architecture == "lfm2" else "output_norm")
        if not model.tied:
            writer.matrix("output", model.width, model.vocabulary)
        for at in range(model.layers):
            _LAYERS[model.architecture](writer, f"blk.{at}", at)
    writer.save(path)


def _lengths(writer: _Writer) -> None:
    model = writer.model
    writer.number("block_count", model.layers)
    writer.number("context_length", model.context)
    writer.number("embedding_length", model.width)
    writer.number("feed_forward_length", model.feed_forward)
    writer.number("attention.head_count", model.heads)
    if model.architecture == "lfm2":
        writer.numbers("attention.head_count_kv", [model.kv_heads * (at % 2) for at in range(model.layers)])
    else:
        writer.number("attention.head_count_kv", model.kv_heads)
    writer.number("attention.key_length", model.head)
    writer.number("attention.value_length", model.head)
    writer.number("vocab_size", model.vocabulary)
    writer.real("attention.layer_norm_rms_epsilon", 1e-5)
    writer.real("attention.layer_norm_epsilon", 1e-5)
    if model.window:
        writer.number("attention.sliding_window", model.window)
    if model.experts:
        writer.number("expert_count", model.experts)
        writer.number("expert_used_count", model.used)
        writer.number("expert_feed_forward_length", model.expert_length)
    for key, value in model.extra.items():
        writer.number(key, value)
    if model.architecture == "cohere2":
        writer.real("logit_scale", 0.25)
        writer.number("rope.dimension_count", model.head)
    if model.architecture == "gpt-oss":
        writer.real("rope.freq_base", 150000.0)
    if model.architecture == "deepseek2":
        writer.real("expert_weights_scale", 1.0)


def _words(writer: _Writer) -> None:
    """A byte-level vocabulary of the wanted size."""
    letters = [chr(33 + number) for number in range(94)]
    words = [*letters, "ab", *(f"word{number}" for number in range(writer.model.vocabulary - 95))]
    writer.file.metadata |= {
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ARRAY, array(STRING, list(words))),
        "tokenizer.ggml.token_type": (ARRAY, array(INT32, [1] * len(words))),
        "tokenizer.ggml.merges": (ARRAY, array(STRING, ["a b"])),
        "tokenizer.ggml.bos_token_id": (UINT32, 96),
        "tokenizer.ggml.eos_token_id": (UINT32, 97),
        "tokenizer.ggml.add_bos_token": (BOOL, 0),
    }


def _word_pieces(writer: _Writer) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"\u2581word{number}" for number in range(writer.model.vocabulary - len(words))]
    writer.file.metadata |= {
        "tokenizer.ggml.model": (STRING, "bert"),
        "tokenizer.ggml.pre": (STRING, "jina-v2-en"),
        "tokenizer.ggml.tokens": (ARRAY, array(STRING, list(words))),
        "tokenizer.ggml.token_type": (ARRAY, array(INT32, [1] * len(words))),
        "tokenizer.ggml.token_type_count": (UINT32, 2),
        "tokenizer.ggml.bos_token_id": (UINT32, 2),
        "tokenizer.ggml.eos_token_id": (UINT32, 3),
        "tokenizer.ggml.unknown_token_id": (UINT32, 1),
        "tokenizer.ggml.seperator_token_id": (UINT32, 3),
        "tokenizer.ggml.padding_token_id": (UINT32, 0),
        "bert.attention.causal": (BOOL, 0),
        "bert.pooling_type": (UINT32, 1),
    }


def _attention(writer: _Writer, block: str, *, biases: bool = False, head_norms: bool = False) -> None:
    model = writer.model
    queries, keys = model.heads * model.head, model.kv_heads * model.head
    for name, wide in (("q", queries), ("k", keys), ("v", keys)):
        writer.matrix(f"{block}.attn_{name}", model.width, wide)
        if biases:
            writer.vector(f"{block}.attn_{name}.bias", wide)
    writer.matrix(f"{block}.attn_output", queries, model.width)
    if head_norms:
        writer.norm(f"{block}.attn_q_norm", f"{block}.attn_k_norm", width=model.head)


def _feed_forward(writer: _Writer, block: str) -> None:
    model = writer.model
    writer.matrix(f"{block}.ffn_gate", model.width, model.feed_forward)
    writer.matrix(f"{block}.ffn_up", model.width, model.feed_forward)
    writer.matrix(f"{block}.ffn_down", model.feed_forward, model.width)


def _experts(writer: _Writer, block: str) -> None:
    model = writer.model
    writer.matrix(f"{block}.ffn_gate_inp", model.width, model.experts, type="F32")
    writer.matrix(f"{block}.ffn_gate_exps", model.width, model.expert_length, model.experts)
    writer.matrix(f"{block}.ffn_up_exps", model.width, model.expert_length, model.experts)
    writer.matrix(f"{block}.ffn_down_exps", model.expert_length, model.width, model.experts)


def _llama(writer: _Writer, block: str, _: int) -> None:
    writer.norm(f"{block}.attn_norm", f"{block}.ffn_norm")
    _attention(writer, block)
    (_experts if writer.model.experts else _feed_forward)(writer, block)


def _qwen2(writer: _Writer, block: str, _: int) -> None:
    writer.norm(f"{block}.attn_norm", f"{block}.ffn_norm")
    _attention(writer, block, biases=True)
    _feed_forward(writer, block)


def _qwen3(writer: _Writer, block: str, _: int) -> None:
    writer.norm(f"{block}.attn_norm", f"{block}.ffn_norm")
    _attention(writer, block, head_norms=True)
    (_experts if writer.model.experts else _feed_forward)(writer, block)


def _gemma(writer: _Writer, block: str, _: int) -> None:
    writer.norm(f"{block}.attn_norm", f"{block}.ffn_norm", f"{block}.post_attention_norm", f"{block}.post_ffw_norm")
    _attention(writer, block, head_norms=writer.model.architecture == "gemma3")
    _feed_forward(writer, block)


def _cohere2(writer: _Writer, block: str, _: int) -> None:
    writer.norm(f"{block}.attn_norm")
    _attention(writer, block)
    _feed_forward(writer, block)


def _phi3(writer: _Writer, block: str, _: int) -> None:
    model = writer.model
    queries, keys = model.heads * model.head, model.kv_heads * model.head
    writer.norm(f"{block}.attn_norm", f"{block}.ffn_norm")
    writer.matrix(f"{block}.attn_qkv", model.width, queries + 2 * keys)
    writer.matrix(f"{block}.attn_output", queries, model.width)
    writer.matrix(f"{block}.ffn_up", model.width, 2 * model.feed_forward)
    writer.matrix(f"{block}.ffn_down", model.feed_forward, model.width)


def _gpt_oss(writer: _Writer, block: str, _: int) -> None:
    model = writer.model
    writer.norm(f"{block}.attn_norm", f"{block}.post_attention_norm")
    _attention(writer, block, biases=True)
    writer.vector(f"{block}.attn_output.bias", model.width)
    writer.vector(f"{block}.attn_sinks.weight", model.heads)
    _experts(writer, block)
    writer.vector(f"{block}.ffn_gate_inp.bias", model.experts)
    writer.vector(f"{block}.ffn_gate_exps.bias", model.expert_length, model.experts)
    writer.vector(f"{block}.ffn_up_exps.bias", model.expert_length, model.experts)
    writer.vector(f"{block}.ffn_down_exps.bias", model.width, model.experts)


def _deepseek2(writer: _Writer, block: str, at: int) -> None:
    model = writer.model
    latent = model.extra["attention.kv_lora_rank"]
    rope = model.extra["rope.dimension_count"]
    plain = model.extra["attention.key_length_mla"] - rope
    value = model.extra["attention.value_length_mla"]
    writer.norm(f"{block}.attn_norm", f"{block}.ffn_norm")
    queries = model.extra["attention.q_lora_rank"]
    writer.matrix(f"{block}.attn_q_a", model.width, queries)
    writer.norm(f"{block}.attn_q_a_norm", width=queries)
    writer.matrix(f"{block}.attn_q_b", queries, model.heads * (plain + rope))
    writer.matrix(f"{block}.attn_kv_a_mqa", model.width, latent + rope)
    writer.norm(f"{block}.attn_kv_a_norm", width=latent)
    writer.matrix(f"{block}.attn_k_b", plain, latent, model.heads)
    writer.matrix(f"{block}.attn_v_b", latent, value, model.heads)
    writer.matrix(f"{block}.attn_output", model.heads * value, model.width)
    if at < model.extra["leading_dense_block_count"]:
        _feed_forward(writer, block)
        return
    _experts(writer, block)
    shared = model.expert_length * model.extra["expert_shared_count"]
    writer.matrix(f"{block}.ffn_gate_shexp", model.width, shared)
    writer.matrix(f"{block}.ffn_up_shexp", model.width, shared)
    writer.matrix(f"{block}.ffn_down_shexp", shared, model.width)


def _mamba(writer: _Writer, block: str, _: int) -> None:
    model = writer.model
    inner, state = model.extra["ssm.inner_size"], model.extra["ssm.state_size"]
    rank, kernel = model.extra["ssm.time_step_rank"], model.extra["ssm.conv_kernel"]
    writer.norm(f"{block}.attn_norm")
    writer.matrix(f"{block}.ssm_in", model.width, 2 * inner)
    writer.matrix(f"{block}.ssm_conv1d", kernel, inner, type="F32")
    writer.vector(f"{block}.ssm_conv1d.bias", inner)
    writer.matrix(f"{block}.ssm_x", inner, rank + 2 * state)
    writer.matrix(f"{block}.ssm_dt", rank, inner)
    writer.vector(f"{block}.ssm_dt.bias", inner)
    writer.vector(f"{block}.ssm_a", state, inner)
    writer.vector(f"{block}.ssm_d", inner)
    writer.matrix(f"{block}.ssm_out", inner, model.width)


def _lfm2(writer: _Writer, block: str, at: int) -> None:
    model = writer.model
    writer.norm(f"{block}.attn_norm", f"{block}.ffn_norm")
    _feed_forward(writer, block)
    if at % 2:
        _attention(writer, block, head_norms=True)
        return
    writer.matrix(f"{block}.shortconv.in_proj", model.width, 3 * model.width)
    writer.matrix(f"{block}.shortconv.conv", model.extra["shortconv.l_cache"], model.width, type="F32")
    writer.matrix(f"{block}.shortconv.out_proj", model.width, model.width)


def _bert(writer: _Writer) -> None:
    model = writer.model
    writer.matrix("position_embd", model.width, model.context, type="F32")
    writer.matrix("token_types", model.width, 2, type="F32")
    _with_bias(writer, "token_embd_norm", model.width)
    for at in range(model.layers):
        block = f"blk.{at}"
        for name in ("q", "k", "v", "output"):
            writer.matrix(f"{block}.attn_{name}", model.width, model.width)
            writer.vector(f"{block}.attn_{name}.bias", model.width)
        _with_bias(writer, f"{block}.attn_output_norm", model.width)
        _with_bias(writer, f"{block}.layer_output_norm", model.width)
        writer.matrix(f"{block}.ffn_up", model.width, model.feed_forward)
        writer.vector(f"{block}.ffn_up.bias", model.feed_forward)
        writer.matrix(f"{block}.ffn_down", model.feed_forward, model.width)
        writer.vector(f"{block}.ffn_down.bias", model.width)


def _with_bias(writer: _Writer, name: str, width: int) -> None:
    writer.norm(name, width=width)
    writer.vector(f"{name}.bias", width)


_LAYERS: dict[str, Callable[[_Writer, str, int], None]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "cohere2": _cohere2,
    "phi3": _phi3,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
    "mamba": _mamba,
    "lfm2": _lfm2,
}
