"""`gpt recipes`: what there is, and a copy to edit."""

import re
import sys
from itertools import takewhile
from pathlib import Path

from gpt_modules.commands.arguments import Arguments, path_name
from gpt_modules.errors import UserError
from gpt_modules.storage.durable import replace_durably, room_for
from gpt_modules.storage.recipes import find_recipe, recipe_names, recipe_text

DESCRIPTION = """Without a name, list the recipes: those of the current folder's recipes/ and those that ship with the
package. With a name, print one, or copy it to a file of yours."""


def main(words: list[str]) -> None:
    """`gpt recipes [NAME [--copy FILE]]`.

    Raises:
        UserError: no recipe has that name, or the file to copy to exists.
    """
    parser = Arguments(prog="gpt recipes", description=DESCRIPTION)
    parser.add_argument("name", nargs="?", help="such as ppo/tiny, or a folder of recipes such as ppo")
    parser.add_argument("--copy", type=path_name, metavar="FILE", help="write it there, for you to edit")
    options = parser.parse_args(words)
    folders = {name.partition("/")[0] for name in recipe_names()}
    if options.name is None or options.name.removeprefix("recipes/").rstrip("/") in folders:
        if options.copy:
            raise UserError("--copy: found no recipe to copy, expected a name before it; gpt recipes lists them")
        sys.stdout.write(listing((options.name or "").removeprefix("recipes/").rstrip("/")))
        return
    content = recipe_text(find_recipe(options.name))
    if options.copy:
        _copy(content, options.copy)
    else:
        sys.stdout.write(content)


def listing(folder: str = "") -> str:
    """Each recipe's name and the first sentence of its comment."""
    names = [name for name in recipe_names() if not folder or name.startswith(f"{folder}/")]
    width = max(map(len, names), default=0)
    return "".join(
        f"{name:<{width}}  {_first_sentence(find_recipe(f'{name}.yaml'))}\n".rstrip() + "\n" for name in names
    )


def _first_sentence(path: Path) -> str:
    """Up to the end of a sentence, or to the indented command below it."""
    lines = recipe_text(path).split("\n")
    text = takewhile(lambda line: line.startswith("#") and not line.startswith("#  "), lines)
    comment = " ".join(line.lstrip("# ").strip() for line in text)
    return re.split(r"(?<=[a-z)\d]\.) (?=[A-Z])", comment, maxsplit=1)[0]


def _copy(content: str, path: Path) -> None:
    with room_for(path):
        taken = path.is_symlink() or path.exists()
    if taken:
        raise UserError(f"--copy: {path} exists, expected the name of a new file")
    replace_durably(path, content)
