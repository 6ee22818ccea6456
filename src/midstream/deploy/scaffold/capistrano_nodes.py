"""What Ruby text consists of, as far as it is understood: expressions and statements. Values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Literal:
    """A value as it stands: a string, number, True, False or None."""

    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class SymbolOf:
    parts: tuple[str | Node, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A string with code inside."""

    parts: tuple[str | Node, ...]


@dataclass(frozen=True, slots=True)
class Items:
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    pairs: tuple[tuple[Node, Node], ...]


@dataclass(frozen=True, slots=True)
class Block:
    """`{ |names| … }` or `do |names| … end`."""

    names: tuple[str, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Function:
    """`-> { … }`, `lambda { … }`, `proc { … }`."""

    block: Block


@dataclass(frozen=True, slots=True)
class Call:
    """`receiver.name(args) block`; also a bare name. receiver: None where there is none. options: `key: value`s."""

    receiver: Node | None
    name: str
    args: tuple[Node, ...] = ()
    options: tuple[tuple[Node, Node], ...] = ()
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class Both:
    """`left operator right`."""

    left: Node
    operator: str
    right: Node


@dataclass(frozen=True, slots=True)
class Not:
    operand: Node


@dataclass(frozen=True, slots=True)
class Choice:
    """`test ? yes : no`."""

    test: Node
    yes: Node
    no: Node


@dataclass(frozen=True, slots=True)
class Assign:
    """`name = value`, `name ||= value`, `receiver[key] = value`."""

    target: Node
    operator: str
    value: Node


@dataclass(frozen=True, slots=True)
class If:
    """`if`, `unless` (test turned round), with their modifiers. branches: test (None: else) and body."""

    branches: tuple[tuple[Node | None, tuple[Statement, ...]], ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something of which only the text is known."""

    text: str


Node = Literal | SymbolOf | Text | Items | Pairs | Function | Call | Both | Not | Choice | Assign | If | Opaque


@dataclass(frozen=True, slots=True)
class Statement:
    """node: what it is; None: not understood. text: as written. line: from 1."""

    node: Node | None
    text: str
    line: int
