"""The PhiMoE nearest to Phi-tiny that llama.cpp can load, with random weights.

llama.cpp needs query heads that add up to the hidden width. 16 layers of 32/8 heads and experts of width 896 have the
weights, KV bytes and operations of Phi-tiny's 32 layers of 16/4 heads and width 448, in half as many layers.

It gets Phi's tokenizer, so that a server can be asked for text.

usage: make_lookalike.py FOLDER TOKENIZER    writes q4_0.gguf and q8_0.gguf, as llama.cpp's own quantization makes them;
TOKENIZER is Phi's tokenizer.json
"""

import ctypes
import json
import os
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD, EXPERTS, WIDTH, VOCAB = 16, 4096, 32, 8, 128, 16, 896, 32064
TYPES = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


def tensors():
    """Name, shape (rows first), mean, deviation. The deviations keep logits finite and experts in even use."""
    yield "token_embd.weight", (VOCAB, HIDDEN), 0, 1.0
    for n in range(LAYERS):
        layer = f"blk.{n}."
        for norm in ("attn_norm", "ffn_norm"):
            yield f"{layer}{norm}.weight", (HIDDEN,), 1, 0.1
            yield f"{layer}{norm}.bias", (HIDDEN,), 0, 0.02
        for name, rows, std in (
            ("attn_q", HEADS * HEAD, 0.02),
            ("attn_k", KV_HEADS * HEAD, 0.02),
            ("attn_v", KV_HEADS * HEAD, 0.02),
            ("attn_output", HIDDEN, 0.004),
        ):
            yield f"{layer}{name}.weight", (rows, HEADS * HEAD), 0, std
            yield f"{layer}{name}.bias", (rows,), 0, 0.02
        yield f"{layer}ffn_gate_inp.weight", (EXPERTS, HIDDEN), 0, 0.02
        yield f"{layer}ffn_gate_exps.weight", (EXPERTS, WIDTH, HIDDEN), 0, 0.02
        yield f"{layer}ffn_up_exps.weight", (EXPERTS, WIDTH, HIDDEN), 0, 0.02
        yield f"{layer}ffn_down_exps.weight", (EXPERTS, HIDDEN, WIDTH), 0, 0.003
    yield "output_norm.weight", (HIDDEN,), 1, 0.1
    yield "output_norm.bias", (HIDDEN,), 0, 0.02
    yield "output.weight", (VOCAB, HIDDEN), 0, 0.04
    yield "output.bias", (VOCAB,), 0, 0.1


def add_tokenizer(writer, path):
    """As llama.cpp's converter writes Llama's: the rank of a piece, negative, is its score."""
    tokenizer = json.loads(Path(path).read_text(encoding="utf-8"))
    pieces = [f"[UNUSED_{id}]" for id in range(VOCAB)]
    types = [gguf.TokenType.UNUSED] * VOCAB
    for piece, id in tokenizer["model"]["vocab"].items():
        is_byte = len(piece) == 6 and piece.startswith("<0x")
        pieces[id], types[id] = piece, gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        pieces[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    types[0] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(id) for id in range(VOCAB)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(32000)
    writer.add_unk_token_id(0)


def write(path, tokenizer):
    """The model before quantization: matrices in f16, the rest in f32. One tensor at a time is in memory."""
    writer = gguf.GGUFWriter(path, "phimoe")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    add_tokenizer(writer, tokenizer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    plan = [(*t, np.float32 if len(t[1]) == 1 or "gate_inp" in t[0] else np.float16) for t in tensors()]
    for name, shape, _, _, dtype in plan:
        writer.add_tensor_info(name, shape, np.dtype(dtype), int(np.prod(shape)) * np.dtype(dtype).itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(1234)
    # Drawing 3.8 billion normal numbers takes minutes; windows of 2^25 of them, anywhere, differ enough.
    numbers = rng.standard_normal(1 << 25, dtype=np.float32)
    for _, shape, mean, std, dtype in plan:
        count = int(np.prod(shape))
        window = numbers[int(rng.integers(numbers.size // 2)) :]
        drawn = np.resize(window, count) * np.float32(std) + np.float32(mean)
        writer.write_tensor_data(drawn.astype(dtype).reshape(shape))
    writer.close()


def quantize(source, target, ftype):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = os.cpu_count()
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if code != 0:
        sys.exit(f"llama_model_quantize: code {code} for {target.name}")


folder, tokenizer = Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
unquantized = folder / "f16.gguf"
write(unquantized, tokenizer)
for name, ftype in TYPES.items():
    partial = folder / f"{name}.gguf.partial"
    quantize(unquantized, partial, ftype)
    partial.rename(folder / f"{name}.gguf")
unquantized.unlink()
