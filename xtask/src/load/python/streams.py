"""A locustfile: users that ask for one answer after the other, and read each as a stream, token by token.

Locust's own figures are rounded; what is written to RESULT at the end is not. An answer is lost that does not end as it
should: with a reason and [DONE], and without an error.
"""

import json
import os
import random
import time

from locust import HttpUser, events, task

TOKENS = int(os.environ["LOAD_TOKENS"])
STOP_IDS = json.loads(os.environ["LOAD_STOP_IDS"])
RESULT = os.environ["LOAD_RESULT"]
WORDS = "the a little dog cat went to see old big tree and then found some red ball under his house by day".split()

first_token_ms, between_tokens_ms, answer_ms = [], [], []
counts = {"answers": 0, "tokens": 0, "lost": 0, "refused": 0}
lost = []
window = {"begin": time.perf_counter(), "end": None}


class Reader(HttpUser):
    @task
    def answer(self):
        prompt = " ".join(random.choices(WORDS, k=random.randint(16, 48)))
        body = {
            "prompt": prompt, "max_tokens": TOKENS, "stream": True, "temperature": 0,
            "logit_bias": {str(id): -100 for id in STOP_IDS},
        }
        begun = time.perf_counter()
        options = {"json": body, "stream": True, "timeout": 3600, "catch_response": True, "name": "answer"}
        with self.client.post("/v1/completions", **options) as response:
            if response.status_code == 503:
                counts["refused"] += 1
                response.success()
                time.sleep(1)
                return
            why = self.read(response, begun) if response.status_code == 200 else f"status {response.status_code}"
            if why is None:
                counts["answers"] += 1
                answer_ms.append((time.perf_counter() - begun) * 1e3)
                response.success()
            else:
                counts["lost"] += 1
                lost.append(why)
                response.failure(why)

    def read(self, response, begun):
        """None, or why the answer is lost."""
        newest, finish, tokens = None, None, 0
        # Each piece as it comes, however short.
        for line in response.iter_lines(chunk_size=None):
            line = line.decode()
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                return None if finish == "length" else f"finish_reason {finish} after {tokens} pieces"
            piece = json.loads(line[6:])
            if "error" in piece:
                return str(piece["error"])[:200]
            choice = piece["choices"][0]
            finish = choice.get("finish_reason") or finish
            if not choice.get("text"):
                continue
            now = time.perf_counter()
            if newest is None:
                first_token_ms.append((now - begun) * 1e3)
            else:
                between_tokens_ms.append((now - newest) * 1e3)
            newest = now
            tokens += 1
            counts["tokens"] += 1
        return f"cut after {tokens} pieces"


def percentiles(values):
    values = sorted(values)
    if not values:
        return None
    at = lambda share: values[min(len(values) - 1, int(share * len(values)))]
    return {"mean": sum(values) / len(values), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": values[-1]}


@events.test_start.add_listener
def begin(**_):
    window["begin"] = time.perf_counter()


@events.test_stopping.add_listener
def stopping(**_):
    # What comes after is users who come to their end, with fewer and fewer beside them.
    window["end"] = (time.perf_counter(), dict(counts))


@events.quit.add_listener
def write(**_):
    ended, then = window["end"] or (time.perf_counter(), counts)
    seconds = ended - window["begin"]
    result = counts | {
        "seconds": seconds,
        "pieces_per_second": then["tokens"] / seconds,
        "answers_per_second": then["answers"] / seconds,
        "first_token_ms": percentiles(first_token_ms),
        "between_tokens_ms": percentiles(between_tokens_ms),
        "answer_ms": percentiles(answer_ms),
        "why_lost": sorted(set(lost))[:5],
    }
    with open(RESULT, "w") as file:
        json.dump(result, file)
