"""Which routing ONNX Runtime's MoE and QMoE implement on the CPU."""

import numpy as np
import onnx
import onnxruntime
from onnx import helper

TOKENS, EXPERTS, HIDDEN, WIDTH, JITTER = 5, 8, 32, 32, 0.01
random = np.random.default_rng(0)
normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
x, scores = normal(TOKENS, HIDDEN), normal(TOKENS, EXPERTS)
gate_up, down = normal(EXPERTS, 2 * WIDTH, HIDDEN) / 5, normal(EXPERTS, HIDDEN, WIDTH) / 5


def softmax_of_the_largest(s):
    p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    return np.where(s >= np.sort(s, 1)[:, -2:-1], p, 0)


def sparsemixer(s):
    weights = np.zeros_like(s)
    for row, out in zip(s, weights):
        left = row.copy()
        for _ in range(2):
            best = int(np.argmax(left))
            kept = ~((row[best] - row) / np.maximum(np.abs(row), row[best]) > 2 * JITTER) & np.isfinite(left)
            out[best] = 1 / np.exp(row[kept] - row[best]).sum()
            left[best] = -np.inf
    return weights


def moe(weights, gate_up, down):
    y = np.zeros_like(x)
    for token, expert in zip(*np.nonzero(weights)):
        z = gate_up[expert] @ x[token]
        g, up = z[0::2], z[1::2]
        y[token] += weights[token, expert] * (down[expert] @ (g / (1 + np.exp(-g)) * up))
    return y


def run(op, inputs, constants, **attributes):
    common = dict(domain="com.microsoft", k=2, activation_type="swiglu", swiglu_fusion=1)
    common |= dict(activation_alpha=1.0, activation_beta=0.0)
    node = helper.make_node(op, inputs, ["y"], **common, **attributes)
    feed = {"x": x, "scores": scores, "router_weights": sparsemixer(scores)}
    info = lambda name, shape: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    used = [info(name, value.shape) for name, value in feed.items() if name in inputs]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "g", used, [info("y", x.shape)], tensors)
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: feed[value.name] for value in used})[0]


def quantized(w):
    """4 bits in blocks of 32: packed, scales, and the weights that they stand for."""
    blocks = w.reshape(EXPERTS, w.shape[1], -1, 32)
    scales = np.abs(blocks).max(-1) / 7
    quants = np.clip(np.round(blocks / scales[..., None]) + 8, 0, 15).astype(np.uint8)
    values = ((quants.astype(np.float32) - 8) * scales[..., None]).reshape(w.shape)
    quants = quants.reshape(w.shape)
    return quants[..., 0::2] | quants[..., 1::2] << 4, scales, values


for use_sparse_mixer in (0, 1):
    y = run("MoE", ["x", "scores", "gate_up", "", "down"], {"gate_up": gate_up, "down": down}, use_sparse_mixer=use_sparse_mixer)
    assert np.allclose(y, moe(softmax_of_the_largest(scores), gate_up, down), atol=1e-5)
    assert not np.allclose(y, moe(sparsemixer(scores), gate_up, down), atol=1e-1)

(q1, s1, gate_up), (q2, s2, down) = quantized(gate_up), quantized(down)
inputs = ["x", "scores", "q1", "s1", "", "q2", "s2"] + [""] * 7 + ["router_weights"]
constants = {"q1": q1, "s1": s1, "q2": q2, "s2": s2}
y = run("QMoE", inputs, constants, expert_weight_bits=4, block_size=32, weights_prepacked=0)
assert np.allclose(y, moe(sparsemixer(scores), gate_up, down), atol=1e-5)
print("checked")
