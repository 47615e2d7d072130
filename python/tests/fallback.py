"""Texts that outlive their scheduler. Arguments: address, model, the scheduler's process, and an undisturbed text."""

import json
import os
import signal
import sys
import warnings

from tandem_client import FallbackWarning, Orchestrator, Sampling

ADDRESS, MODEL, PROCESS, EXPECTED = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
TOKENS = len(EXPECTED["ids"])

orchestrator = Orchestrator(
    ADDRESS, model=MODEL, program=os.environ["TANDEM_PROGRAM"], timeout=10, reconnect=0, prefill_chunk=2
)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    text, killed = "", False
    for piece in orchestrator.stream("Once upon a time", max_tokens=TOKENS, sampling=Sampling.greedy()):
        text += piece
        if len(text) > 60 and not killed:
            killed = True
            os.kill(PROCESS, signal.SIGKILL)
    assert killed
    assert text == EXPECTED["text"], text
    assert list(orchestrator.last.ids) == EXPECTED["ids"]
    assert orchestrator.last.written_by == ("scheduler", "this process"), orchestrator.last.written_by
    # And one for which there never was one.
    again = orchestrator.generate("Once upon a time", max_tokens=30, sampling=Sampling.greedy())
    assert list(again.ids) == EXPECTED["ids"][:30] and again.written_by == ("this process",)
    # Nobody wants all of it: the program ends.
    pieces = orchestrator.stream("Once upon a time", max_tokens=TOKENS, sampling=Sampling.greedy())
    next(pieces)
    pieces.close()
    answer = orchestrator.chat([{"role": "user", "content": "Tell me a story."}], max_tokens=5)
    assert answer.written_by == ("this process",)
# Said once.
assert [warning.category for warning in caught] == [FallbackWarning], [str(w.message) for w in caught]
