"""The plain GPT-2 that ours is measured against computes what ours does."""

import torch
from plain_gpt import PlainGPT, groups

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.training.optimizers import parameter_groups


def test_its_loss_is_that_of_ours_with_its_weights() -> None:
    torch.manual_seed(0)
    plain = PlainGPT(vocab_size=31, n_positions=16, n_layer=2, n_embd=128)
    config = DecoderConfig(vocab_size=31, n_positions=16, n_layer=2, n_head=2, n_embd=128, mlp="gelu")
    ours = GPT(config).eval()
    ours.decoder.load_state_dict(plain.state_dict())
    tokens = torch.randint(31, (3, 17))
    logits = ours(tokens[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(plain(tokens), expected)


def test_the_same_parameters_decay() -> None:
    plain = PlainGPT(vocab_size=31, n_positions=16, n_layer=1, n_embd=64)
    found, expected = (
        {group["weight_decay"]: {id(one) for one in group["params"]} for group in each}
        for each in (groups(plain), parameter_groups([plain], 0.1))
    )
    assert found == expected
