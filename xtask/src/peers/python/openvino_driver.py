"""OpenVINO GenAI under `cargo xtask peers`, with its defaults, timed by its own performance metrics.

usage: openvino_driver.py FOLDER THREADS CONTEXT
"""

import itertools
import sys

import numpy as np
import openvino
import openvino_genai
from protocol import serve


class Engine:
    """The pipeline has no calls for a prompt or a token alone; a generation's metrics tell them apart."""

    def __init__(self, folder, threads):
        self.pipeline = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads)

    def metrics(self, ids, tokens):
        """Of a generation of `tokens` tokens after the prompt `ids`."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        prompt = openvino.Tensor(np.array([ids], dtype=np.int64))
        metrics = self.pipeline.generate(prompt, config).perf_metrics
        if metrics.get_num_generated_tokens() != tokens:
            sys.exit(f"expected {tokens} tokens, found {metrics.get_num_generated_tokens()}")
        return metrics

    def prompt(self, ids):
        return self.metrics(ids, 1).get_ttft().mean / 1e3

    def generate(self, before, tokens):
        # The first new token belongs to the prompt's time.
        return self.metrics(before, tokens + 1).get_tpot().mean / 1e3 * tokens

    def prepare(self, kind, ids, before):
        """A prompt comes before the time in every run: the pipeline knows it, and skips what it has computed before.
        What is timed as a prompt must be new for the same reason, so it begins with another token every time."""
        if kind == "tg":
            return lambda: self.generate(before or ids[:1], len(ids))
        turns = itertools.count()

        def run():
            turn = next(turns) % len(ids)
            return self.prompt(before + ids[turn:] + ids[:turn])

        return run


folder, threads = sys.argv[1], int(sys.argv[2])
engine = Engine(folder, threads)
serve(
    engine,
    32064,
    program="OpenVINO GenAI",
    version=openvino_genai.__version__,
    details=f"OpenVINO {openvino.__version__}",
)
