"""What a value says of itself, whatever its class makes of it: an error of an application may raise as it is shown."""

from __future__ import annotations

from collections.abc import Callable

from cgexec.interruption import is_interruption


def class_name(value: object) -> str:
    """Return the name of the class of ``value``, whatever its metaclass makes of it."""
    name: str = type.__dict__["__qualname__"].__get__(type(value))
    return name


def text_of(value: object) -> str:
    """Return the text of an exception or a note, whatever its class makes of it."""
    return _made(str, value)


def _made(text: Callable[[object], str], value: object) -> str:
    try:
        return "".join([text(value), ""])  # of no class of its own, which might not cross
    except BaseException as error:  # a broken __str__ of a user's class must not lose the exception
        if is_interruption(error):
            raise
        return f"<its text cannot be had: {class_name(error)}>"


def shown(value: object) -> str:
    """Return what ``repr`` shows, whatever the value's class makes of it."""
    return _made(repr, value)


class Readable:
    """Shows its fields as a dataclass does, also where the class of an error among them does not like to be shown."""

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={shown(value)}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({fields})"


def told(error: BaseException) -> str:
    """Return the name of an exception's class, and its text, whatever its class makes of it."""
    return f"{class_name(error)}: {text_of(error)}"


def qualified_name(exception: BaseException) -> str:
    """Return the name a traceback gives the class of ``exception``."""
    cls = type(exception)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def as_plain_exception(error: BaseException) -> Exception:
    """Return ``error``, or an Exception that says what it is if it is none."""
    return error if isinstance(error, Exception) else RuntimeError(told(error))
