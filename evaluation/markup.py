"""HTML as strings that escape themselves, and numbers as a reader wants them."""

import html
import math
from collections.abc import Iterable, Sequence

from training.scores import points


class Markup(str):
    """Text that is HTML already; every other string is escaped when it enters a page."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One HTML element.

    Args:
        name: of the element.
        *children: what is inside; a `Markup` stays as it is and anything else is escaped.
        **attributes: a trailing or inner `_` stands for what Python does not allow (`class_`, `stroke_width`); None and False
            leave an attribute out, True writes its bare name.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def joined(children: Iterable[object]) -> Markup:
    """Several pieces one after the other, escaped where they are no `Markup`."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children))


def number(value: float | None) -> str:
    """Points with as many decimals as help: none where whole, one from 10 on, two below."""
    if value is None or not math.isfinite(value):
        return "-"
    if float(value).is_integer():
        return f"{value:z,.0f}"
    return points(value)


def interval(ends: Sequence[float] | None) -> str:
    """Both ends of an interval, where there is one."""
    return "no interval" if ends is None else f"[{number(ends[0])}, {number(ends[1])}]"
