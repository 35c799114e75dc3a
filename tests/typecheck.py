"""What jaxtyping checks gpt_modules with: beartype, and an int will do where a float is asked for (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
