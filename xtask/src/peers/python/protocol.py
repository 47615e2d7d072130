"""The conversation with `cargo xtask peers`: one line in, one line of JSON out.

    prepare KIND TOKENS DEPTH    fills the cache with DEPTH tokens, runs the test once   {"ready": true}
    time                         runs the test                                           {"seconds": S}

KIND is pp (a prompt) or tg (tokens one by one). The first line goes out unasked: who this is.
"""

import json
import random
import sys


def answer(**fields):
    print(json.dumps(fields), flush=True)


def serve(engine, vocab, **who):
    """`engine.prepare(kind, ids, before)` puts `before` into the cache and answers a function that runs `ids` after it
    and answers the seconds that took, as often as it is called."""
    answer(**who)
    test = None
    for line in sys.stdin:
        words = line.split()
        if words[0] == "prepare":
            kind, tokens, depth = words[1], int(words[2]), int(words[3])
            draw = random.Random(0)
            before = [draw.randrange(vocab) for _ in range(depth)]
            ids = [draw.randrange(vocab) for _ in range(tokens)]
            test = engine.prepare(kind, ids, before)
            test()
            answer(ready=True)
        elif words[0] == "time":
            answer(seconds=test())
        else:
            sys.exit(f"unknown request: {line.strip()}")
