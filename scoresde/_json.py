"""JSON from files that are not trusted."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 32  # configurations are nested 4 deep


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: for text that is not JSON, and for values nested more than 32 deep, on which recursive code would
            fail.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from error
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [part for whole in layer for part in _parts(whole)]
    if layer:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return value


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
