"""operators.py FACTS: holds what the analysis says of operators against onnx and onnxruntime."""

import json
import sys

import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

facts = json.loads(sys.argv[1])
contrib = {s.name for s in runtime.get_all_operator_schema() if s.domain == "com.microsoft"}
on_cpu = {(k.domain, k.op_name) for k in runtime.get_all_opkernel_def() if k.provider == "CPUExecutionProvider"}
for operation in facts["operations"]:
    for name in operation["standard"]:
        onnx.defs.get_schema(name, facts["opset"])  # fails where that set does not have it
        assert ("", name) in on_cpu, name
    if operation["newer_standard"]:
        name, version = operation["newer_standard"]
        first = min(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == name and s.domain == "")
        assert first == version > facts["opset"], (name, first)
    for name in operation["contrib"]:
        assert name in contrib, name
        assert ("com.microsoft", name) in on_cpu, name
print("checked")
