"""transformers under `cargo xtask peers`: PyTorch's CPU path in bf16.

usage: transformers_driver.py FOLDER THREADS CONTEXT
"""

import sys
import time

import torch
import transformers
from protocol import serve


class Engine:
    def __init__(self, folder, threads):
        torch.set_num_threads(threads)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def forward(self, ids, cache):
        """Logits of the last token only, as the other programs compute them."""
        logits = self.model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        if not torch.isfinite(logits).all():
            sys.exit("logits are not finite")

    def prepare(self, kind, ids, before):
        """Every run begins with an empty cache: to be at a depth, it takes the prompt again, outside the time."""

        def run():
            cache = transformers.DynamicCache(config=self.model.config)
            if before:
                self.forward(before, cache)
            started = time.perf_counter()
            for step in [ids] if kind == "pp" else [[token] for token in ids]:
                self.forward(step, cache)
            return time.perf_counter() - started

        return run


folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_grad_enabled(False)
transformers.utils.logging.disable_progress_bar()
engine = Engine(folder, threads)
serve(
    engine,
    engine.model.config.vocab_size,
    program="transformers",
    version=transformers.__version__,
    details=f"torch {torch.__version__}",
)
