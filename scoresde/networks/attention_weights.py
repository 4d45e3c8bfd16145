"""The weights of attention to tokens, as somebody who watches sees them.

Networks compute attention in one fused operation, which gives no weights. They are computed beside it while, and only
while, somebody watches.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

from torch import Tensor

Watch = Callable[[Tensor, Tensor | None], None]
_watches: list[Watch] = []


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """While entered, every attention to tokens in this process calls `watch(weights, mask)`.

    Args:
        watch: is given the weights `(B, heads, N, L)`, which for each of N places sum to 1 over the tokens, and the
            mask `(B, L)` of tokens that count, None for all. Token 0 is the network's own.
    """
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)


def show_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> None:
    """Shows the weights of queries `(B, heads, N, d)` and keys `(B, heads, L, d)` to those who watch.

    They are softmax(q k^T / sqrt(d)) over the tokens that the mask `(B, L)` keeps.
    """
    if not _watches:
        return
    scores = q.detach().float() @ k.detach().float().mT / math.sqrt(q.shape[3])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
    weights = scores.softmax(3)
    for watch in _watches:
        watch(weights, mask)
