"""Loggers of which nothing depends: what a handler of the caller's raises does not reach whoever has something to say.

Handlers of the standard library raise nothing. One that does would end the thread that rebuilds the graph.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any


class _Log(logging.LoggerAdapter[logging.Logger]):
    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, or do not."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # whoever called, not this
        with suppress(Exception):  # there is nobody to be told
            super().log(level, msg, *args, **kwargs)


def logger(name: str) -> logging.LoggerAdapter[logging.Logger]:
    """Return the logger of a module."""
    return _Log(logging.getLogger(name), {})
