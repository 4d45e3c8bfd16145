"""What a network is called with: a measure of memory that is the same on every machine."""

from __future__ import annotations

from typing import NamedTuple


class Call(NamedTuple):
    """A call of a network: the samples, the entries of one, and whether a graph was kept for derivatives."""

    count: int
    dim: int
    graph: bool


def watched(monkeypatch, network_class):
    """The calls of all networks of a class from now on, in a list that grows."""
    calls = []
    forward = network_class.forward

    def noted(self, x, c_noise, cond=None):
        output = forward(self, x, c_noise, cond)
        calls.append(Call(len(x), x[0].numel(), output.requires_grad))
        return output

    monkeypatch.setattr(network_class, "forward", noted)
    return calls


def most(calls, graph=False):
    """The most samples of a call, among those that kept a graph or did not; 0 if there are none."""
    return max((call.count for call in calls if call.graph == graph), default=0)
