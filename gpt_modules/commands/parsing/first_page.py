"""What `gpt fit --help` says first: answered at once, without the libraries."""

from collections.abc import Sequence

FIRST_PAGE = """usage: gpt COMMAND --config RECIPE [--config OVERLAY]... [--KEY VALUE]...

COMMAND a recipe: a YAML file, or the name of one that ships with the package (gpt recipes lists them, and
copies one for you to edit: gpt recipes sft/tiny --copy my.yaml).

how values compose:
  --config a.yaml --config b.yaml    files are laid over one another, the later one wins, mappings key by key
  --model.optimizer.lr 1e-4          a key on the command line wins over every file, wherever it stands
  --model.optimizer.muon_lr null     unsets a key
  --data.train a.txt b.txt           several values are a list, so --data.train my_texts/*.txt works
  --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss
                                     appends to a list, then sets a key of what was appended
  --data.batch_size '${trainer.max_epochs}'
                                     refers to another key, after all overrides (in files too; model and data
                                     are written out there: ${model.init_args.init_from})
  --ckpt_path last                   goes on from the newest checkpoint of trainer.default_root_dir

what a key is:
  gpt COMMAND --help pretraining     the keys of a procedure, with types and defaults:
                                     pretraining, finetuning, sft, reward, ppo, maml, dpo
  gpt COMMAND --config sft/tiny --help
                                     the same, with what the recipe says
  gpt COMMAND --help trainer         Lightning's Trainer: steps, devices, precision, strategy, callbacks, ...
  gpt COMMAND --help SomeClass       a callback, a task family, any class that a recipe may name
  gpt COMMAND --help all             every key at once
  gpt COMMAND --config RECIPE --print_config
                                     the recipe with all its values

code of yours:
  --model.rewards my_package.scores:politeness
                                     a function as PPO's reward, from the current folder or installed
  --allow my_package                 lets a recipe name classes (class_path) of a package of yours; without it,
                                     a recipe names classes of gpt_modules, Lightning and torch.nn only

A run writes into trainer.default_root_dir only: TensorBoard's events, config.yaml, checkpoints/, summary.json and
export/, the folder that the next stage reads. A folder that holds a run is never overwritten."""


def asks_first_page(words: Sequence[str]) -> bool:
    """True for `--help` alone, without a recipe or a name."""
    return list(words) in (["--help"], ["-h"])
