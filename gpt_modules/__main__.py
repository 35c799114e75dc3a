"""`python -m gpt_modules` is the `gpt` command."""

from gpt_modules.cli import main

if __name__ == "__main__":
    main()
