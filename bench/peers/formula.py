"""The three operations put together from simpler ones, for the libraries that run graphs."""

from typing import Protocol, TypeVar

Node = TypeVar("Node")


class Primitives(Protocol[Node]):
    """What a graph can be made of; `max` and `sum` go along the axis of the rows and keep it."""

    def max(self, x: Node) -> Node: ...
    def sum(self, x: Node) -> Node: ...
    def exp(self, x: Node) -> Node: ...
    def log(self, x: Node) -> Node: ...
    def add(self, x: Node, y: Node) -> Node: ...
    def sub(self, x: Node, y: Node) -> Node: ...
    def div(self, x: Node, y: Node) -> Node: ...


def formula(op: str, x: Node, p: Primitives[Node]) -> Node:
    """The graph of an operation. logsumexp keeps the axis, with length 1."""
    m = p.max(x)
    d = p.sub(x, m)
    e = p.exp(d)
    s = p.sum(e)
    if op == "softmax":
        return p.div(e, s)
    return p.sub(d, p.log(s)) if op == "log_softmax" else p.add(p.log(s), m)
