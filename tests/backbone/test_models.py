"""The tied head, the score at the last real token, and a trunk copied from a language model."""

import dataclasses

import torch

from gpt_modules.backbone import GPT, DecoderConfig, RewardModel

CONFIG = DecoderConfig(vocab_size=31, n_positions=12, n_layer=2, n_head=2, n_embd=16).without_dropout()


def test_logits_follow_the_embedding_and_both_uses_share_its_gradient() -> None:
    model, tokens = GPT(CONFIG), torch.tensor([[1, 2, 3]])
    expected = model.hidden(tokens) @ model.decoder.wte.weight.t()
    torch.testing.assert_close(model(tokens), expected)
    model(tokens).logsumexp(2).sum().backward()
    gradient = model.head_weight.grad
    assert gradient is not None
    assert (gradient.abs().amax(dim=1) > 0).all()  # rows that were never read learn through the head
    assert len(list(model.parameters())) == 2 + 2 * 12 + 2


def test_an_output_matrix_of_its_own_is_the_head_and_no_part_of_a_scorer() -> None:
    model, tokens = GPT(dataclasses.replace(CONFIG, tied=False)), torch.tensor([[1, 2, 3]])
    assert model.lm_head.weight.std().item() < 0.03, "drawn as the embedding is"
    torch.testing.assert_close(model(tokens), model.hidden(tokens) @ model.lm_head.weight.t())
    model(tokens).logsumexp(2).sum().backward()
    embedded = model.decoder.wte.weight.grad
    assert embedded is not None
    assert embedded.abs().amax(dim=1).nonzero().flatten().tolist() == [1, 2, 3]
    scorer = RewardModel.from_gpt(model)
    assert torch.equal(scorer.decoder(tokens), model.hidden(tokens))
    assert not any("lm_head" in name for name in scorer.state_dict())


def test_score_is_read_at_the_last_real_token_whatever_the_padding() -> None:
    model = RewardModel(CONFIG)
    rows = [torch.tensor([[4, 5, 6]]), torch.tensor([[7, 8, 9, 10, 11]])]
    alone = torch.cat([model.token_values(row)[:, -1] for row in rows])
    block = torch.tensor([[4, 5, 6, 0, 0], [7, 8, 9, 10, 11]])
    torch.testing.assert_close(model(block, torch.tensor([3, 5])), alone)


def test_bias_comes_before_scale_and_leaves_the_values_alone() -> None:
    model, tokens, lengths = RewardModel(CONFIG), torch.tensor([[4, 5, 6]]), torch.tensor([3])
    raw, values = model(tokens, lengths), model.token_values(tokens)
    model.bias.fill_(-1.5)
    model.scale.fill_(2.0)
    torch.testing.assert_close(model(tokens, lengths), 2.0 * raw - 3.0)
    assert torch.equal(model.token_values(tokens), values)
    assert {"bias", "scale"} <= set(model.state_dict())


def test_trunk_of_a_language_model_is_copied_not_shared() -> None:
    gpt, tokens = GPT(CONFIG), torch.tensor([[1, 2, 3]])
    model = RewardModel.from_gpt(gpt)
    assert torch.equal(model.decoder(tokens), gpt.hidden(tokens))
    with torch.no_grad():
        gpt.head_weight.zero_()
    assert model.decoder.wte.weight.abs().sum() > 0


def test_a_reward_models_constants_keep_their_digits_in_half_precision():
    model = RewardModel(DecoderConfig(vocab_size=8, n_positions=4, n_layer=1, n_head=1, n_embd=4))
    model.bias.fill_(0.7)
    model.scale.fill_(1.9)
    model.to(torch.bfloat16)
    assert model.head.linear.weight.dtype == torch.bfloat16
    assert torch.equal(model.bias, torch.tensor(0.7))
    assert torch.equal(model.scale, torch.tensor(1.9))
    assert {"bias", "scale"} <= model.state_dict().keys()
