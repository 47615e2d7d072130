"""Runs an op-by-op export in the order of computation: run_operations.py FOLDER IDS RESULTS."""

import json
import os
import sys

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import save_file

folder, ids, results = sys.argv[1:4]
ids = np.array([json.loads(ids)], np.int64)
values = {
    "input_ids": ids,
    "attention_mask": np.ones_like(ids),
    "position_ids": np.arange(ids.shape[1])[None],
}


def run(name):
    """Inputs are what earlier operations left under these names."""
    path = os.path.join(folder, name + ".onnx")
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for value in session.get_inputs():
        if value.name.startswith("past."):
            values[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        elif value.name == "residual":
            values["residual"] = values["hidden"]
    names = [output.name for output in session.get_outputs()]
    values.update(zip(names, session.run(names, {i.name: values[i.name] for i in session.get_inputs()})))


run("embedding")
of_layer = "attention_layernorm attention_qkv_proj attention_compute attention_output_proj moe_layernorm router_logits"
of_layer += " expert_selection expert_dispatch expert_ffn_w1 expert_ffn_activation expert_ffn_w2 expert_gather"
for layer in range(sum(name.endswith("_router_logits.onnx") for name in os.listdir(folder))):
    for operation in of_layer.split():
        run(f"layer{layer:02}_{operation}")
run("final_layernorm")
run("lm_head")
save_file({"logits": values["logits"]}, results)
