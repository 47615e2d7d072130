"""OpenVINO GenAI under `cargo xtask peers`, with its defaults, timed by its own performance metrics.

usage: openvino_driver.py FOLDER THREADS CONTEXT
"""

import sys

import numpy as np
import openvino
import openvino_genai
from protocol import serve


class Engine:
    """The pipeline has no calls for a prompt or a token alone; a generation's metrics tell them apart."""

    def __init__(self, folder, threads):
        self.pipeline = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads)

    def durations(self, ids, tokens):
        """Seconds until each of `tokens` tokens after the prompt `ids`."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        prompt = openvino.Tensor(np.array([ids], dtype=np.int64))
        metrics = self.pipeline.generate(prompt, config).perf_metrics
        later = [microseconds / 1e6 for microseconds in metrics.raw_metrics.m_durations]
        seconds = [metrics.get_ttft().mean / 1e3, *later[-(tokens - 1) :]] if tokens > 1 else [metrics.get_ttft().mean / 1e3]
        if len(seconds) != tokens:
            sys.exit(f"expected the times of {tokens} tokens, found {len(seconds)}")
        return seconds

    def prepare(self, kind, ids, before):
        """Every run begins with an empty cache: to be at a depth, it takes the prompt again, outside the time."""
        if kind == "pp":
            return lambda: self.durations(before + ids, 1)[0]
        # The first new token belongs to the prompt's time; a prompt needs a token.
        return lambda: sum(self.durations(before or ids[:1], len(ids) + 1)[1:])


folder, threads = sys.argv[1], int(sys.argv[2])
engine = Engine(folder, threads)
serve(
    engine,
    32064,
    program="OpenVINO GenAI",
    version=openvino_genai.__version__,
    details=f"OpenVINO {openvino.__version__}",
)
