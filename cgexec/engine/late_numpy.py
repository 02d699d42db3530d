"""numpy, imported when it is first needed: in each new host that takes as long as everything else about its graph.

A driver has it from the start (``stats``): nothing that it does on an event loop has to wait for that.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any


@cache
def numpy() -> Any:
    """Return numpy."""
    import numpy

    return numpy


def is_array(value: Any) -> bool:
    """Return whether a value is of numpy's own class of arrays, which none is where nobody has imported numpy."""
    imported = sys.modules.get("numpy")
    return imported is not None and type(value) is getattr(imported, "ndarray", None)
