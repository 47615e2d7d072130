"""Plain pyzmq sends every message of docs/protocol.md, right and wrong, by REQ or DEALER.

Arguments: the address, REQ or DEALER, and {"ids", "greedy"} of a prompt. Prints what was sent and what came, one a line.
"""

import json
import struct
import sys

import zmq

ADDRESS, KIND, STORY = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

context = zmq.Context()
socket = context.socket(getattr(zmq, KIND))
socket.setsockopt(zmq.RCVTIMEO, 60_000)
socket.setsockopt(zmq.LINGER, 0)
socket.connect(ADDRESS)


def send(message, *frames):
    print(json.dumps({"request": message}))
    socket.send_multipart([json.dumps(message).encode(), *frames])


def receive():
    frames = socket.recv_multipart()
    answer = json.loads(frames[0])
    print(json.dumps({"answer": answer}))
    return answer, frames[1:]


def ask(message, *frames):
    send(message, *frames)
    return receive()


def refused(frames, code="bad_request"):
    socket.send_multipart(frames)
    answer, tensors = receive()
    assert answer["status"] == "error" and answer["code"] == code, answer
    assert "\n" not in answer["error"] and not tensors
    return answer


def packet(operation, shape, layer=0, **more):
    data = {"packet_id": f"{operation}-1", "operation": operation, "layer_idx": layer, "input_shape": shape, **more}
    return {"type": "work_packet", "id": 5, "data": data}


health, _ = ask({"type": "health_check", "id": "h"})
assert health["status"] == "ok" and health["id"] == "h" and health["igpu_available"] is False
model = health["model"]
hidden, experts, vocab = model["hidden_size"], model["experts"], model["vocab_size"]

# Texts.
greedy = {"temperature": 0}
wanted = {"ids": STORY["ids"], "max_tokens": 24, "sampling": greedy, "stop_ids": [], "continues_prompt": True}
answer, _ = ask({"type": "generate", "id": 1, **wanted})
assert answer["result"]["ids"] == STORY["greedy"][:24], answer
if KIND == "DEALER":
    send({"type": "generate", "id": 2, "stream": True, **wanted})
    ids, events = [], []
    while True:
        answer, _ = receive()
        assert answer["id"] == 2
        events.append(answer["event"])
        if answer["event"] == "tokens":
            ids += answer["ids"]
        if answer["event"] == "finished":
            break
    assert events[0] == "begun" and events.count("begun") == 1 and len(events) > 10
    assert ids == answer["result"]["ids"] == STORY["greedy"][:24]
    # One that is ended.
    send({"type": "generate", "id": 3, "stream": True, **{**wanted, "max_tokens": 300}})
    while receive()[0]["event"] != "tokens":
        pass
    send({"type": "cancel", "id": 4, "target": 3})
    reasons, cancelled = [], []
    while not (reasons and cancelled):
        answer, _ = receive()
        if answer["type"] == "cancel":
            cancelled.append(answer["cancelled"])
        elif answer["event"] == "finished":
            reasons.append(answer["result"]["finish_reason"])
    assert (reasons, cancelled) == (["cancelled"], [1])
else:
    answer, _ = ask({"type": "generate", "id": 2, "stream": True, **wanted})
    assert answer["event"] == "finished" and answer["result"]["ids"] == STORY["greedy"][:24]
    answer, _ = ask({"type": "cancel"})
    assert answer["cancelled"] == 0
ask({"type": "generate", "prompt": "One day", "max_tokens": 3, "stop": ["xyz"]})
ask({"type": "generate", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 3})
answer, _ = ask({"type": "generate", **wanted, "logprobs": 3})
told = answer["result"]["logprobs"]
assert [token["id"] for token in told] == [token["top"][0]["id"] for token in told] == STORY["greedy"][:24]
biased = {**greedy, "logit_bias": {str(STORY["greedy"][0]): -100}, "frequency_penalty": 0.5, "presence_penalty": 0.5}
answer, _ = ask({"type": "generate", **wanted, "sampling": biased})
assert answer["result"]["ids"][0] != STORY["greedy"][0]
schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
answer, _ = ask({"type": "generate", "prompt": "x", "constraint": {"json_schema": schema}, "sampling": greedy})
assert json.loads(answer["result"]["text"])["a"] in (1, 2), answer
calls = {"tools": [{"name": "look", "parameters": schema}, {"name": "stop"}], "required": True}
answer, _ = ask({"type": "generate", "prompt": "x", "constraint": {"tools": calls}, "sampling": greedy})
assert answer["result"]["text"].startswith('<tool_call>{"name":"'), answer
refused([json.dumps({"type": "generate", "prompt": "x", "logprobs": 21}).encode()])
refused([json.dumps({"type": "generate", "prompt": "x", "constraint": {"json_schema": 3}}).encode()])

# Packets: with numbers of all types, and as probes.
row = [((n * 37) % 64 - 32) / 32 for n in range(2 * hidden)]
answer, tensors = ask(packet("router_logits", [2, hidden]), struct.pack(f"<{2 * hidden}f", *row))
result = answer["result"]
assert result["success"] and result["input"] == "tensor" and result["output_shape"] == [2, experts]
logits = struct.unpack(f"<{2 * experts}f", tensors[0])
answer, tensors = ask(packet("router_logits", [2, hidden], input_dtype="float16"), struct.pack(f"<{2 * hidden}e", *row))
assert struct.unpack(f"<{2 * experts}f", tensors[0]) == logits
answer, tensors = ask(packet("embedding", [3], None, input_dtype="int64"), struct.pack("<3q", 1, 2, 3))
assert answer["result"]["output_shape"] == [3, hidden] and len(tensors[0]) == 3 * hidden * 4
for operation in ["attention_layernorm", "moe_layernorm", "final_layernorm", "attention_qkv_proj", "expert_ffn", "lm_head"]:
    answer, tensors = ask(packet(operation, [4, hidden], device_target="cpu", priority=3))
    result = answer["result"]
    assert result["input"] == "synthetic" and not tensors
    assert result["device_used"] == "cpu" and result["actual_duration_ms"] > 0 and result["memory_used_mb"] > 0
assert ask(packet("lm_head", [1, hidden]))[0]["result"]["output_shape"] == [1, vocab]
refused([json.dumps(packet("lm_head", [1, hidden], input_data_ptr=4096)).encode()])
refused([json.dumps(packet("lm_head", [1, hidden + 1])).encode()])
refused([json.dumps(packet("lm_head", [1, hidden])).encode(), b"short"])
refused([json.dumps(packet("lm_head", [1, hidden], input_dtype="complex64")).encode()])
refused([json.dumps(packet("lm_head", [1, hidden], device_target="igpu")).encode()])
refused([json.dumps(packet("no_such", [1, hidden])).encode()])

# Figures, policy, config.
telemetry, _ = ask({"type": "get_telemetry"})
assert telemetry["telemetry"]["total_packets_processed"] > 0
ask({"type": "get_bandwidth_stats"})
ask({"type": "get_state"})
ask({"type": "get_trace"})
for policy in ["static", "bandwidth_aware", "adaptive"]:
    assert ask({"type": "set_policy", "policy": policy})[0]["policy"] == policy
refused([json.dumps({"type": "set_policy", "policy": "fastest"}).encode()])
assert ask({"type": "reload_config", "yaml": "static_partition: {lm_head: cpu}"})[0]["applied"] is True
refused([json.dumps({"type": "reload_config", "yaml": "static_partition: {lm_heat: cpu}"}).encode()])
refused([json.dumps({"type": "reload_config"}).encode()])

# What is no message.
refused([b"not JSON"])
refused([b"\xff\x00"])
refused([b"[]"])
refused([b'{"type": "health_check"}', b"tensor"])
refused([b'{"id": {}, "type": "health_check"}'])
refused([b'{"type": "make_tea"}'], "unknown_type")
assert ask({"type": "health_check"})[0]["status"] == "ok"

answer, _ = ask({"type": "shutdown", "id": "bye"})
assert answer["status"] == "success" and answer["id"] == "bye"
