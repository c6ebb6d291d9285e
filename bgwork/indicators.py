"""Parts of configuration space by name: an observable that is 1 within and 0 outside, or a bound on any other.

    "phi_positive", "psi_1_sin < -0.64", "radius_of_gyration > 0.37"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

Function = Callable[[Tensor], Tensor]
BOUND = re.compile(r"(?P<name>\w+)\s*(?P<sign>[<>])\s*(?P<bound>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)")


class IndicatorError(ValueError):
    """What names no part of configuration space, with the remedy."""


def inside(functions: Mapping[str, Function], text: str, x: Tensor) -> Tensor:
    """Which configurations lie within, [N] bool.

    Args:
        functions: observables by name, of x [N, n, d] to [N].
        text: the name of one that is 1 or 0, or a name, < or >, and a number.
        x: configurations [N, n, d].
    Raises:
        IndicatorError: if the observable is unknown, is not one of such configurations, or has other values than 1 and 0 and no bound.

    Example:
        >>> import torch
        >>> inside({"first": lambda x: x[:, 0, 0]}, "first > 0.5", torch.tensor([[[0.0]], [[1.0]]])).tolist()
        [False, True]
    """
    name, found = observable_of(functions, text), BOUND.fullmatch(text.strip())
    value = value_of(functions, name, x)
    if found:
        return value < float(found["bound"]) if found["sign"] == "<" else value > float(found["bound"])
    if not ((value == 0) | (value == 1)).all():
        raise IndicatorError(f"{name} is from {value.min():g} to {value.max():g} and not 1 or 0; give a bound, as in "
                             f"\"{name} > {value.median():.3g}\"")
    return value.bool()


def observable_of(functions: Mapping[str, Function], text: str) -> str:
    """The name of the observable that a part of configuration space is defined by.

    Raises:
        IndicatorError: if it is unknown.
    """
    found = BOUND.fullmatch(text.strip())
    name = found["name"] if found else text.strip()
    if name not in functions:
        raise IndicatorError(f"unknown observable {name!r}; known are {', '.join(functions)}, and bounds such as \"NAME > 0.5\"")
    return name


def value_of(functions: Mapping[str, Function], name: str, x: Tensor) -> Tensor:
    """A known observable of configurations [N, n, d], [N] float64.

    Raises:
        IndicatorError: if they have none, such as a third coordinate in the plane.
    """
    try:
        return functions[name](x.double()).double()
    except (IndexError, RuntimeError) as error:
        raise IndicatorError(f"{name} is no observable of these configurations ({error}); take another") from error
