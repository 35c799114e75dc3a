"""What pyproject.toml has no words for: `recipes/` of the tree is `gpt_modules/recipes/` of an installation."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["gpt_modules*"]), "gpt_modules.recipes"],
    package_dir={"gpt_modules.recipes": "recipes"},
)
