"""A compiled block has few graphs: none for each width of a batch, whatever the family."""

import json
import subprocess
import sys

# In a process of its own: the run-time type checks of these tests are no food for the compiler.
COUNTED = """
import json, torch
from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.backbone.decoder import GRAPHS

torch._dynamo.config.recompile_limit = GRAPHS  # as `compile_blocks` has it

SHAPES, made = [(3, 8), (4, 9), (2, 17)], []
FAMILIES = {
    "gpt2": {},
    "banded": {"attention": ("dense", "banded"), "window": 6},
    "rotary": {"positions": "rotary", "n_kv_head": 1, "head_size": 16, "norm_kind": "rms", "mlp": "swiglu"},
}

def backend(graph, inputs):
    made.append(graph)
    return graph.forward

def graphs(scores, **fields):
    torch._dynamo.reset()
    made.clear()
    model = GPT(DecoderConfig(50, 64, 2, 2, 32, **fields).without_dropout())
    for block in model.decoder.blocks:
        block.compile(backend=backend)
    for rows, width in SHAPES:
        tokens = torch.zeros(rows, width, dtype=torch.long)
        if scores:  # a rollout, and the update on it
            model.eval()
            with torch.no_grad():
                model.hidden(tokens, read=torch.arange(width - 2))
            model.train()
        model.hidden(tokens, read=torch.arange(width - 3) if scores else None)
    return len(made)

print(json.dumps({name: [graphs(scores, **fields) for scores in (False, True)] for name, fields in FAMILIES.items()}))
"""


def test_widths_share_their_graphs():
    """Without the first, of fixed sizes, one for all; in PPO one for each of learning and scoring, with states to read
    and without. Where layers are of two kinds each has its own.
    """
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["gpt2"] == found["rotary"] == [2, 8]
    assert found["banded"] == [4, 8]
