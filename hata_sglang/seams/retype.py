"""More methods for an object that SGLang built, without a wrapper.

A wrapper would have to hand on every attribute that SGLang reads, and defaults at class level would
shadow its ``__getattr__``. So the object gets a subclass of its own class.
"""

from __future__ import annotations

from typing import Any

_SUBCLASSES: dict[tuple[type, type], type] = {}


class Methods:
    """Base of what `retype` hands out."""

    #: The subclass that holds the methods.
    hata_class: type

    @property
    def hata_stock(self) -> Any:
        """The methods of the object's own class."""
        return super(self.hata_class, self)


def retype(thing: Any, methods: type[Methods]) -> None:
    """Give an object the methods of a class, in a subclass of its own; one for each of its classes.

    The methods are copied: CPython refuses to retype an instance to a class of two bases.
    """
    base = type(thing)
    if (base, methods) not in _SUBCLASSES:
        members = {
            name: member
            for part in (Methods, methods)
            for name, member in vars(part).items()
            if name not in ("__dict__", "__weakref__")
        }
        made = type(f"Hata{base.__name__}", (base,), members)
        made.hata_class = _SUBCLASSES[base, methods] = made
    thing.__class__ = _SUBCLASSES[base, methods]
