"""Checks an export with onnx.checker and runs it with ONNX Runtime.

run_export.py FOLDER PROMPTS RESULTS [ACCURACY_LEVEL]: PROMPTS is JSON, a list of {"ids", "new_tokens"}. RESULTS becomes a
safetensors file: logits, router choices and greedy continuation of each prompt, and the logits of all of them as one batch
with padding on the left. ACCURACY_LEVEL replaces that of MatMulNBits.
"""

import json
import os
import sys

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import save_file

folder, prompts, results = sys.argv[1:4]
path = os.path.join(folder, "model.onnx")
onnx.checker.check_model(path, full_check=True)
model = onnx.load(path, load_external_data=False)
if len(sys.argv) > 4:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = int(sys.argv[4])

outputs = [output.name for output in model.graph.output]
layers = sum(name.endswith(".key") for name in outputs)
routed = [f"layers.{n}.router.{what}" for n in range(layers) for what in ("experts", "weights")]
for name in routed:
    kind = onnx.TensorProto.INT64 if name.endswith("experts") else onnx.TensorProto.FLOAT
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, ["tokens", 2]))
probe = os.path.join(folder, "probe.onnx")
onnx.save(model, probe)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(probe, options, providers=["CPUExecutionProvider"])
os.remove(probe)

cache_inputs = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]


def run(ids, mask, positions, past):
    """All outputs by name, and the cache for the next call. Arrays are batch x length."""
    feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
    names = outputs + routed
    values = dict(zip(names, session.run(names, {k: np.ascontiguousarray(v) for k, v in feed.items()})))
    cache = {n.replace("present", "past_key_values"): values[n] for n in outputs if n != "logits"}
    return values, cache


def empty(batch):
    return {i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32) for i in cache_inputs}


def whole(ids):
    ids = np.array([ids], np.int64)
    return run(ids, np.ones_like(ids), np.arange(ids.shape[1])[None], empty(1))


def greedy(ids, n):
    """As a program would: the prompt in two parts, then token by token."""
    cache, length, new = empty(1), 0, []
    todo = [part for part in (ids[: len(ids) // 2], ids[len(ids) // 2 :]) if part]
    while len(new) < n:
        part = np.array([todo.pop(0)], np.int64)
        positions = np.arange(length, length + part.shape[1])[None]
        length += part.shape[1]
        values, cache = run(part, np.ones((1, length), np.int64), positions, cache)
        if not todo:
            new.append(int(values["logits"][0, -1].argmax()))
            todo.append(new[-1:])
    return new


def batch(prompts):
    length = max(map(len, prompts))
    pad = lambda values, fill: np.array([[fill] * (length - len(v)) + v for v in values], np.int64)
    mask = pad([[1] * len(p) for p in prompts], 0)
    positions = pad([list(range(len(p))) for p in prompts], 0)
    return run(pad(prompts, 0), mask, positions, empty(len(prompts)))[0]["logits"]


with open(prompts) as file:
    prompts = json.load(file)
tensors = {}
for n, prompt in enumerate(prompts):
    values, _ = whole(prompt["ids"])
    tensors[f"p{n}.logits"] = values["logits"][0]
    experts = np.stack([values[name] for name in routed[0::2]])
    tensors[f"p{n}.experts"] = experts.astype(np.int32)
    tensors[f"p{n}.weights"] = np.stack([values[name] for name in routed[1::2]])
    tensors[f"p{n}.greedy"] = np.array(greedy(prompt["ids"], prompt["new_tokens"]), np.int32)
for n, logits in enumerate(batch([prompt["ids"] for prompt in prompts])):
    tensors[f"p{n}.batched"] = logits[-len(prompts[n]["ids"]) :]
save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, results)
