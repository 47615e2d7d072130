"""llama.cpp under `cargo xtask peers`, through its batch calls, with its defaults.

usage: llama_driver.py MODEL.gguf THREADS CONTEXT
"""

import math
import sys
import time

import llama_cpp
from llama_cpp import llama_cpp as api
from protocol import serve


class Engine:
    def __init__(self, path, threads, context):
        api.llama_log_set(QUIET, None)
        api.llama_backend_init()
        model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not model:
            sys.exit(f"llama.cpp cannot load {path}")
        params = api.llama_context_default_params()
        params.n_ctx = context
        params.n_threads = params.n_threads_batch = threads
        self.context = api.llama_init_from_model(model, params)
        if not self.context:
            sys.exit(f"llama.cpp cannot make a context of {context} tokens")
        self.memory = api.llama_get_memory(self.context)
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self.batch_limit = api.llama_n_batch(self.context)

    def decode(self, ids):
        """All of `ids` in one batch; logits of the last."""
        tokens = (api.llama_token * len(ids))(*ids)
        code = api.llama_decode(self.context, api.llama_batch_get_one(tokens, len(ids)))
        if code != 0:
            sys.exit(f"llama_decode: code {code}")

    def prompt(self, ids):
        for start in range(0, len(ids), self.batch_limit):
            self.decode(ids[start : start + self.batch_limit])

    def generate(self, ids):
        for token in ids:
            self.decode([token])
            api.llama_synchronize(self.context)

    def prepare(self, kind, ids, before):
        api.llama_memory_clear(self.memory, True)
        self.prompt(before)
        work = self.prompt if kind == "pp" else self.generate

        def run():
            api.llama_memory_seq_rm(self.memory, 0, len(before), -1)
            api.llama_synchronize(self.context)
            started = time.perf_counter()
            work(ids)
            api.llama_synchronize(self.context)
            return time.perf_counter() - started

        return run

    def check(self):
        """Fails where the logits are not what a working model has."""
        self.prepare("pp", [1, 2, 3], [])()
        logits = api.llama_get_logits_ith(self.context, -1)[: self.vocab]
        if not all(map(math.isfinite, logits)) or max(logits) == min(logits):
            sys.exit("logits are not finite, or all the same")


# Kept for as long as the process lives: llama.cpp holds only its address.
QUIET = api.llama_log_callback(lambda level, text, data: None)

path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
engine = Engine(path, threads, context)
engine.check()
serve(
    engine,
    engine.vocab,
    program="llama.cpp",
    version=f"llama-cpp-python {llama_cpp.__version__}",
    details=api.llama_print_system_info().decode().strip(),
)
