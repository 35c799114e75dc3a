"""Names that a user gives, as paths: of every file and folder of a recipe or a command."""

from difflib import get_close_matches
from pathlib import Path

LIKENESS = 0.8  # of two names from which one is taken for a slip of the other


def path_of(name: str | Path) -> Path:
    """The path that a name means; `~` is the home folder, unless it has none ("~x.txt" is the home of nobody)."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder: not for a name that no file can have (too long, a zero byte)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def near_names(name: str) -> list[str]:
    """What stands beside a path that there is not, with nearly its name, or in a folder with nearly its folder's."""
    path = path_of(name)
    if path.parent.is_dir() or len(path.parts) < 2:
        return [str(path.parent / found) for found in _close(path.name, path.parent)]
    folders = [path.parent.parent / found for found in _close(path.parent.name, path.parent.parent)]
    return [str(folder / path.name) for folder in folders if is_there(folder / path.name)]


def lies_in_folder(name: str) -> bool:
    """Whether a name's folder is here, so that it means something in it, whether that is there or not."""
    path = path_of(name)
    return len(path.parts) > 1 and is_there(path.parent) and path.parent.is_dir()


def _close(name: str, folder: Path) -> list[str]:
    try:
        return get_close_matches(name, [entry.name for entry in folder.iterdir()], 3, LIKENESS)
    except (OSError, ValueError):
        return []
