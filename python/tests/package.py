"""The package with a scheduler. Arguments: the address, its model's folder, and {"ids", "greedy"} of a prompt."""

import json
import os
import sys
import time
import warnings

import numpy

from tandem_client import (
    Orchestrator,
    RequestRefused,
    Sampling,
    SchedulerClient,
    SchedulerGone,
    SchedulerTimeout,
    WorkPacket,
)

ADDRESS, MODEL, STORY = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
warnings.simplefilter("error")


def raises(kind, what):
    try:
        what()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


client = SchedulerClient(ADDRESS, timeout=30).connect()
health = client.health_check()
assert health["status"] == "ok"
hidden, experts = health["model"]["hidden_size"], health["model"]["experts"]

# Packets.
rows = numpy.linspace(-1, 1, 2 * 3 * hidden, dtype=numpy.float32).reshape(2, 3, hidden)
packet = WorkPacket("router_logits", rows.shape, layer_idx=1)
result = client.send_work_packet(packet, rows)
assert result.packet_id == packet.packet_id and result.success and result.device_used == "cpu"
assert result.numpy().shape == (2, 3, experts)
halves = client.send_work_packet(WorkPacket("router_logits", rows.shape, 1, input_dtype="float16"), rows.astype("<f2"))
assert numpy.abs(halves.numpy() - result.numpy()).max() < 0.05
probe = client.send_work_packet({"packet_id": 7, "operation": "lm_head", "input_shape": [1, hidden]})
assert probe.packet_id == 7 and probe.input == "synthetic" and probe.output is None
error = raises(RequestRefused, lambda: client.send_work_packet(WorkPacket("softmax", [1, 8])))
assert error.code == "bad_request" and "softmax" in str(error)

# Figures and policy.
assert client.get_telemetry()["total_packets_processed"] >= 3
assert "cpu_bandwidth_gbps" in client.get_bandwidth_stats()
assert client.get_state()["plan"]
assert "traceEvents" in client.get_trace()
assert client.set_policy("adaptive")["policy"] == "adaptive"
raises(RequestRefused, lambda: client.set_policy("fastest"))
assert client.reload_config("static_partition: {lm_head: cpu}")["status"] == "success"
raises(RequestRefused, lambda: client.reload_config("static_partition: 3"))
raises(RequestRefused, client.reload_config)

# Texts.
wanted = dict(ids=STORY["ids"], max_tokens=20, sampling=Sampling.greedy(), stop_ids=[], continues_prompt=True)
whole = client.generate(**wanted)
assert list(whole.ids) == STORY["greedy"][:20] and whole.finish_reason == "length"
messages = client.stream(**{**wanted, "max_tokens": 200})
while next(messages)["event"] != "tokens":
    pass
# Nobody wants the rest: it ends, and the next answer is not one of its.
messages.close()
assert client.health_check()["status"] == "ok"
end = time.monotonic() + 30
while client.health_check()["running"]:
    assert time.monotonic() < end

likely = client.generate(**wanted, logprobs=2)
assert [token.id for token in likely.logprobs] == [token.top[0][0] for token in likely.logprobs] == list(whole.ids)
assert all(token.logprob == token.top[0][1] > token.top[1][1] for token in likely.logprobs)
unlike = Sampling(temperature=0.0, repetition_penalty=1.0, logit_bias={whole.ids[0]: -100.0})
assert client.generate(**{**wanted, "sampling": unlike}).ids[0] != whole.ids[0]
schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 3}
listed = client.generate(prompt="Colours:", constraint={"json_schema": schema}, sampling=Sampling.greedy())
assert set(json.loads(listed.text)) <= {"red", "blue"} and listed.finish_reason == "stop", listed

orchestrator = Orchestrator(ADDRESS, model=MODEL, timeout=30, program=os.environ["TANDEM_PROGRAM"])
assert orchestrator.tokenize("Once upon a time") is not None
first = orchestrator.generate("Once upon a time", max_tokens=16, sampling=Sampling.greedy())
assert first.text and first.written_by == ("scheduler",)
pieces = list(orchestrator.stream("Once upon a time", max_tokens=16, sampling=Sampling.greedy()))
assert len(pieces) > 3 and "".join(pieces) == first.text and orchestrator.last.ids == first.ids
# A long prompt in chunks is the same prompt.
chunks = Orchestrator(ADDRESS, timeout=30, prefill_chunk=7)
same = chunks.generate(STORY["ids"], max_tokens=12, sampling=Sampling.greedy())
assert list(same.ids) == STORY["greedy"][:12], same
assert same.cached_tokens > 0
# Without a tokenizer the scheduler makes the ids.
assert chunks.tokenize("x") is None
assert chunks.generate("Once upon a time", max_tokens=16, sampling=Sampling.greedy()).ids == first.ids
answer = orchestrator.chat([{"role": "user", "content": "Tell me a story."}], max_tokens=8)
assert answer.text
word = first.text.split()[4]
stopped = orchestrator.generate("Once upon a time", max_tokens=16, sampling=Sampling.greedy(), stop=word)
assert stopped.text == first.text[: first.text.index(word)] and stopped.finish_reason == "stop"
raises(RequestRefused, lambda: orchestrator.generate([10**6], max_tokens=1))

# Nobody there, and nobody to take its place.
absent = SchedulerClient("tcp://127.0.0.1:9", timeout=2)
begun = time.monotonic()
raises(SchedulerGone, absent.health_check)
assert time.monotonic() - begun < 2
raises(SchedulerTimeout, lambda: client.send_work_packet(WorkPacket("lm_head", [8, hidden]), timeout=0))
assert client.health_check()["status"] == "ok"
assert client.shutdown()["status"] == "success"
