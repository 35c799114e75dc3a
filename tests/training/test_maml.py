"""MAML as a LightningModule: the gradients it hands on, the rates it learns, what it exports, and that it adapts."""

import copy
import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_map

from gpt_modules.backbone import DecoderConfig, FeedForward, LabellingModel, load_pretrained, read_config
from gpt_modules.backbone.folders.inner_rates import load_inner_rates
from gpt_modules.data import EpisodicDataModule
from gpt_modules.data.episodes.ciphers import SubstitutionCipher
from gpt_modules.data.episodes.label_words import LabelWords
from gpt_modules.data.episodes.sinusoid import Sinusoid
from gpt_modules.errors import UserError
from gpt_modules.functional import meta_gradient
from gpt_modules.training import MAMLModule
from gpt_modules.training.inner_loop import InnerLoop
from gpt_modules.training.optimizers import OptimizerConfig

ADAM = OptimizerConfig(lr=1e-3, betas=(0.9, 0.999), eps=1e-5, weight_decay=0.0)
REPTILE = OptimizerConfig(lr=1.0, weight_decay=0.0)


def waves(**settings):
    return EpisodicDataModule(Sinusoid(), **{"tasks": 4, "steps": 100, "validation_tasks": 8, **settings})


def ciphers(**settings):
    given = {"tokenizer": "train", "support": 8, "query": 8, "tasks": 4, "steps": 100, "validation_tasks": 8}
    return EpisodicDataModule([SubstitutionCipher(5)], **{**given, **settings})


def decoder(vocab_size, **changes):
    sizes = {"n_positions": 128, "n_layer": 1, "n_head": 2, "n_embd": 16, "embd_pdrop": 0.0}
    return DecoderConfig(vocab_size=vocab_size, **{**sizes, "attn_pdrop": 0.0, "resid_pdrop": 0.0, **changes})


def letters(data):
    return decoder(data.tokenizer.vocab_size)


def weights(module):
    return {name: value.detach().clone() for name, value in module.network.named_parameters()}


class TestTraining:
    @pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
    def test_the_optimizer_sees_the_meta_gradient(self, fit, algorithm):
        module, data = MAMLModule(network=FeedForward(), algorithm=algorithm, inner=InnerLoop(2, 0.05)), waves()
        before = weights(module)
        fit(module, data, max_steps=1, limit_val_batches=0)
        batch = next(iter(waves().train_dataloader()))
        rates = {name: torch.tensor([0.05]) for name in before}
        expected = meta_gradient(module.loss, before, rates, *batch, 2, algorithm)
        for name, parameter in module.network.named_parameters():
            torch.testing.assert_close(parameter.grad, expected.gradients[name])

    def test_reptile_with_epsilon_one_goes_to_the_mean_of_the_adapted_weights(self, fit):
        module = MAMLModule(network=FeedForward(), algorithm="reptile", inner=InnerLoop(2, 0.05), optimizer=REPTILE)
        before, (support, query) = weights(module), next(iter(waves().train_dataloader()))
        adapted = []
        for task in range(4):
            network = FeedForward()
            network.load_state_dict(before)
            descent = torch.optim.SGD(network.parameters(), lr=0.05)
            for (inputs,), targets in (support, query):
                descent.zero_grad()
                torch.nn.functional.mse_loss(network(inputs[task]), targets[task]).backward()
                descent.step()
            adapted.append(weights_of(network))
        fit(module, waves(), max_steps=1, limit_val_batches=0)
        for name, value in module.network.named_parameters():
            torch.testing.assert_close(value.detach(), torch.stack([one[name] for one in adapted]).mean(0))

    def test_two_halves_of_a_batch_are_the_batch(self, fit):
        runs = []
        start = FeedForward()
        for settings, tasks in (({}, 4), ({"accumulate_grad_batches": 2}, 2)):
            module = MAMLModule(network=copy.deepcopy(start), inner=InnerLoop(1, 0.05), optimizer=ADAM)
            fit(module, waves(tasks=tasks), max_steps=3, limit_val_batches=0, **settings)
            runs.append(weights(module))
        for name in runs[0]:
            torch.testing.assert_close(runs[1][name], runs[0][name], rtol=1e-4, atol=1e-6)

    def test_nothing_drops_out(self, fit):
        logged = []
        for dropout in (0.5, 0.0):
            torch.manual_seed(0)
            data = ciphers()
            rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
            config = decoder(data.tokenizer.vocab_size, **rates)
            module = MAMLModule(config=config, inner=InnerLoop(2, 0.1), optimizer=ADAM)
            logged.append(fit(module, data, max_steps=2).logger.values("train/loss"))
        assert logged[0] == logged[1]

    @pytest.mark.parametrize("rates", ["per_step", "per_element"])
    def test_learned_rates_move_and_travel_with_the_weights(self, fit, tmp_path, rates):
        data = ciphers()
        module = MAMLModule(config=letters(data), inner=InnerLoop(2, 0.1, rates), optimizer=ADAM)
        fit(module, data, max_steps=3, limit_val_batches=0)
        assert any(bool((rate != 0.1).any()) for rate in module.rates().values())
        module.export(tmp_path / "export")
        stored = load_inner_rates(tmp_path / "export")
        assert (stored.algorithm, stored.steps) == ("maml", 2)
        for name, rate in module.rates().items():
            torch.testing.assert_close(stored.rates[name], rate.detach())
        on = MAMLModule(init_from=str(tmp_path / "export"), inner=InnerLoop(2, rates=rates), optimizer=ADAM)
        fit(on, ciphers(tokenizer=str(tmp_path / "export")), max_steps=0, limit_val_batches=0)
        torch.testing.assert_close(dict(on.rates()), dict(module.rates()))

    def test_only_what_the_patterns_name_adapts(self, fit):
        module = MAMLModule(network=FeedForward(hidden=[8]), inner=InnerLoop(1, 0.05, adapts=["2.*"]))
        fit(module, waves(), max_steps=1)
        assert set(module.rates()) == {"2.weight", "2.bias"}
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.network.parameters())


def weights_of(network):
    return {name: value.detach() for name, value in network.named_parameters()}


class TestAdapting:
    @pytest.mark.slow
    def test_the_sinusoid_is_learned_in_one_step_and_joint_training_is_not_that_start(self, fit):
        """Finn et al. 2017, section 5.1, at a seventieth of its length; means over 400 tasks."""
        errors = {}
        start = FeedForward()
        for name, steps in (("maml", 1), ("joint", 0)):
            module = MAMLModule(network=copy.deepcopy(start), inner=InnerLoop(steps, 0.01), optimizer=ADAM)
            data = waves(tasks=25, steps=1000, validation_tasks=400, val_tasks_a_batch=400)
            fit(module, data, max_steps=1000, limit_val_batches=0, log_every_n_steps=500)
            for taken in (1, 10):
                module.inner = InnerLoop(taken, 0.01)
                batch = next(iter(data.val_dataloader()))
                errors[name, taken] = module.adapted_scores(batch)[1].mean().item()
        assert errors["maml", 1] < 1.5
        assert errors["maml", 1] < 0.6 * errors["joint", 1]
        assert errors["maml", 10] < 0.85

    @pytest.mark.slow
    def test_a_cipher_is_read_off_its_examples(self, fit):
        """Five letters: chance is 0.2, and before adapting no better can be had."""
        data = ciphers(support=10, query=10, tasks=12, steps=300, validation_tasks=64, val_tasks_a_batch=64)
        fast = OptimizerConfig(lr=3e-3, betas=(0.9, 0.999), weight_decay=0.0)
        module = MAMLModule(config=letters(data), inner=InnerLoop(2, 0.1), optimizer=fast)
        fit(module, data, max_steps=300, limit_val_batches=0, log_every_n_steps=100)
        batch = next(iter(data.val_dataloader()))
        before, after, right = (values.mean().item() for values in module.adapted_scores(batch))
        assert before > 1.4
        assert after < 1.0
        assert right > 0.5

    def test_a_classifier_adapts_with_its_head(self, fit, micro, tmp_path):
        data = EpisodicDataModule([LabelWords()], objective="classification", tokenizer=str(micro.gpt), context=32,
                                  support=4, query=4, tasks=2, steps=3, validation_tasks=4)  # fmt: skip
        module = MAMLModule(init_from=str(micro.gpt), inner=InnerLoop(1, 0.1), optimizer=ADAM)
        fit(module, data, max_steps=2)
        module.export(tmp_path / "export")
        model = load_pretrained(tmp_path / "export")
        assert isinstance(model, LabellingModel)
        assert model.task.labels == ("0", "1")
        assert set(load_inner_rates(tmp_path / "export").rates) == set(dict(model.named_parameters()))


class TestRun:
    def test_validation_tells_before_and_after(self, fit):
        data = ciphers()
        module = MAMLModule(config=letters(data), inner=InnerLoop(1, 0.1), optimizer=ADAM)
        trainer = fit(module, data, max_steps=2, val_check_interval=1)
        for name in ("val/loss", "val/loss_before", "val/accuracy"):
            assert len(trainer.logger.values(name)) == 2
        assert "val/accuracy" not in fit(MAMLModule(network=FeedForward()), waves(), max_steps=1).callback_metrics

    def test_samples_show_a_query_before_and_after(self, fit):
        data = ciphers()
        module = MAMLModule(config=letters(data), inner=InnerLoop(1, 0.1), optimizer=ADAM)
        fit(module, data, max_steps=1)
        rows = module.sample_rows()
        assert len(rows) == 8
        assert all(row["prompt"].endswith(">") and len(row["expected"]) == 1 for row in rows)
        assert {"before", "after"} < set(rows[0])

    def test_a_network_of_numbers_exports_its_weights(self, fit, tmp_path):
        module = MAMLModule(network=FeedForward())
        fit(module, waves(), max_steps=1)
        module.export(tmp_path / "export")
        stored = load_file(tmp_path / "export" / "model.safetensors")
        torch.testing.assert_close(stored, dict(module.network.state_dict()))

    def test_the_configuration_keeps_its_dropout(self, fit, micro, tmp_path):
        module = MAMLModule(init_from=str(micro.gpt), inner=InnerLoop(1, 0.1), optimizer=ADAM)
        fit(module, ciphers(tokenizer=str(micro.gpt), context=32), max_steps=1)
        module.export(tmp_path / "export")
        assert read_config(tmp_path / "export").resid_pdrop == 0.3

    def test_chunks_of_tasks_change_nothing(self, fit):
        runs, start = [], FeedForward()
        for at_once in (None, 3, 1):
            module = MAMLModule(network=copy.deepcopy(start), tasks_at_once=at_once, optimizer=ADAM)
            fit(module, waves(), max_steps=2, limit_val_batches=0)
            runs.append(weights(module))
        for first, second in itertools.pairwise(runs):
            for name in first:
                torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)

    def test_validation_pads_and_scores_each_task_alone(self, fit):
        """A task's score does not depend on the tasks beside it."""
        data = ciphers(validation_tasks=6, val_tasks_a_batch=6)
        module = MAMLModule(config=letters(data), inner=InnerLoop(1, 0.1), optimizer=ADAM)
        fit(module, data, max_steps=1, limit_val_batches=0)
        batch = next(iter(data.val_dataloader()))
        together = module.adapted_scores(batch)
        assert not any(scores.requires_grad for scores in together), "a graph of the network would be kept till the end"
        for task in range(6):
            one = tree_map(lambda tensor, task=task: tensor[task : task + 1], batch)
            for alone, beside in zip(module.adapted_scores(one), together, strict=True):
                torch.testing.assert_close(alone[0], beside[task], rtol=1e-4, atol=1e-5)


class TestMistakes:
    def test_an_inner_loop_that_goes_nowhere(self):
        with pytest.raises(UserError, match=r"inner\.steps: found -1"):
            InnerLoop(steps=-1)
        with pytest.raises(UserError, match=r"inner\.lr: found 0"):
            InnerLoop(lr=0.0)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"inner": InnerLoop(5, rates="per_step")}, "reptile has no gradient of them"),
            ({"inner": InnerLoop(5), "optimizer": OptimizerConfig(2.0)}, "the ε of an interpolation"),
            ({"inner": InnerLoop(1), "optimizer": REPTILE}, "steps: found 1, expected 2 or more"),
        ],
    )
    def test_settings_that_make_no_reptile(self, settings, message):
        with pytest.raises(UserError, match=message):
            MAMLModule(network=FeedForward(), algorithm="reptile", **settings)

    def test_a_pattern_that_names_nothing(self, fit):
        with pytest.raises(UserError, match=r"adapts: found 'head\.\*'.*4\.weight"):
            fit(MAMLModule(network=FeedForward(), inner=InnerLoop(adapts=["head.*"])), waves(), max_steps=1)

    def test_numbers_need_a_network_and_text_a_model(self, fit):
        with pytest.raises(UserError, match=r"^model\.network: found None, expected one: "):
            fit(MAMLModule(config=decoder(16)), waves(), max_steps=1)
        with pytest.raises(UserError, match="neither of config and init_from"):
            fit(MAMLModule(), ciphers(), max_steps=1)

    def test_rows_longer_than_the_model_reads(self, fit):
        data = ciphers(context=256)
        with pytest.raises(UserError, match="context: found 256, expected at most the model's n_positions = 128"):
            fit(MAMLModule(config=letters(data)), data, max_steps=1)

    def test_an_interpolation_is_not_clipped(self, fit):
        module = MAMLModule(network=FeedForward(), algorithm="reptile", inner=InnerLoop(2), optimizer=REPTILE)
        with pytest.raises(UserError, match="gradient_clip_val: found 1, expected none"):
            fit(module, waves(), max_steps=1, gradient_clip_val=1.0)

    def test_a_tokenizer_larger_than_the_model(self, fit):
        with pytest.raises(UserError, match="vocab_size: found 3"):
            fit(MAMLModule(config=decoder(3)), ciphers(), max_steps=1)
