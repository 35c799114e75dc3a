"""What checks gpt_modules while tests run: jaxtyping where annotations have shapes, else beartype alone, by which an
int will do where a float is asked for (PEP 484).

jaxtyping binds the arguments of each call and calls two functions of its own; properties and helpers without a shape
are thousands of calls a training step, and were most of a test's time.
"""

import functools
import inspect
from typing import Any, ForwardRef, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, jaxtyped

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def has_shape(annotation: Any) -> bool:
    """Whether an array type stands anywhere in it, or may: a name in quotes is read by jaxtyping."""
    if isinstance(annotation, list | tuple):
        return any(map(has_shape, annotation))
    if isinstance(annotation, str | ForwardRef):
        return True
    return (inspect.isclass(annotation) and issubclass(annotation, AbstractArray)) or has_shape(get_args(annotation))


def checks(function: Any = None, **named: Any) -> Any:
    """In place of `jaxtyped`, which jaxtyping's import hook puts around every function."""
    if function is None:
        return functools.partial(checks, **named)
    if isinstance(function, property):
        return property(*(part and checks(part, **named) for part in (function.fget, function.fset, function.fdel)))
    if inspect.isfunction(function) and not any(map(has_shape, function.__annotations__.values())):
        return checked(function)
    return jaxtyped(function, **named)


jaxtyping.jaxtyped = checks
