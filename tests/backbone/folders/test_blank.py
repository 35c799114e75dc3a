"""Models to be filled: no weight is drawn, and nothing is imported for it."""

import subprocess
import sys

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.backbone.folders.blank import blank_weights

TINY = DecoderConfig(vocab_size=16, n_positions=8, n_layer=1, n_head=1, n_embd=8)


def test_no_weight_is_there_and_no_number_is_drawn():
    before = torch.get_rng_state()
    with blank_weights():
        model = GPT(TINY)
    assert {of.device.type for of in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)
    other = GPT(TINY)
    assert not torch.equal(torch.get_rng_state(), before)  # without it they are drawn
    model.load_state_dict(other.state_dict(), assign=True)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.eval()(tokens), other.eval()(tokens))


@pytest.mark.slow
def test_a_folder_is_opened_without_torchs_compiler(micro):
    code = (
        "import sys; from gpt_modules.backbone import load_pretrained; load_pretrained(sys.argv[1]); "
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code, str(micro.gpt)], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
