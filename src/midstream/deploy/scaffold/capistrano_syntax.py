"""Ruby tokens into statements and expressions: the part of the language that Capistrano's files are written in.

Pure. A statement that is not understood becomes `NotUnderstood` with its text and line, and the next one is read as if
nothing had happened. Nothing here raises out of `statements_of`, however odd or deep the text is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from midstream.deploy.scaffold.capistrano_lines import depth_change, is_chained, split_statements, words
from midstream.deploy.scaffold.capistrano_nodes import (
    Assign,
    Block,
    Both,
    Call,
    Choice,
    Function,
    If,
    Items,
    Literal,
    Node,
    Not,
    Opaque,
    Pairs,
    Statement,
    SymbolOf,
    Text,
)
from midstream.deploy.scaffold.capistrano_tokens import Code, Kind, Token, tokens_of

DEPTH_MAX = 40  # of nesting: brackets, blocks, code in strings in code


class _Odd(Exception):
    """The tokens are nothing that this reader knows."""


_ARGUMENT_KINDS = frozenset(
    (
        Kind.NAME, Kind.CONST, Kind.VARIABLE, Kind.STRING, Kind.SHELL, Kind.WORDS, Kind.SYMBOLS, Kind.SYMBOL, Kind.LABEL,
        Kind.NUMBER, Kind.REGEX,
    )
)  # fmt: skip
_NOT_ARGUMENTS = words("if unless while until and or do then end rescue in")
_LEVELS = (
    ("or", "and"), ("..", "..."), ("||",), ("&&",), ("<=>", "==", "===", "!=", "=~", "!~"), ("<", "<=", ">", ">="),
    ("|", "^"), ("&",), ("<<", ">>"), ("+", "-"), ("*", "/", "%"), ("**",),
)  # fmt: skip


def statements_of(text: str, line: int = 1) -> tuple[Statement, ...]:
    """The statements of a file. line: of its first line."""
    tokens = tokens_of(text)
    if line != 1:
        tokens = [replace(token, line=token.line + line - 1) for token in tokens]
    return _statements(_Source(text), tokens, 0)


@dataclass(frozen=True, slots=True)
class _Source:
    text: str

    def between(self, tokens: list[Token]) -> str:
        return self.text[tokens[0].start : tokens[-1].end] if tokens else ""


def _statements(source: _Source, tokens: list[Token], depth: int) -> tuple[Statement, ...]:
    return tuple(_statement(source, slice_, depth) for slice_ in split_statements(tokens))


def _statement(source: _Source, tokens: list[Token], depth: int) -> Statement:
    text, line = source.between(tokens), tokens[0].line
    try:
        reader = _Reader(source, tokens, depth)
        node = reader.statement()
        reader.expect_end()
    except (_Odd, RecursionError):
        return Statement(None, text, line)
    return Statement(node, text, line)


class _Reader:
    """One pass over the tokens of a statement."""

    def __init__(self, source: _Source, tokens: list[Token], depth: int) -> None:
        if depth > DEPTH_MAX:
            raise _Odd
        self.source = source
        self.tokens = tokens
        self.at = 0
        self.depth = depth
        self.no_do = 0

    # looking

    def peek(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def skip_newlines(self) -> None:
        while (token := self.peek()) is not None and token.kind is Kind.NEWLINE:
            self.at += 1

    def take(self) -> Token:
        token = self.peek()
        if token is None:
            raise _Odd
        self.at += 1
        return token

    def accept(self, *texts: str) -> bool:
        token = self.peek()
        if token is not None and token.is_operator(*texts):
            self.at += 1
            return True
        return False

    def accept_word(self, *words: str) -> bool:
        token = self.peek()
        if token is not None and token.is_word(*words):
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise _Odd

    def expect_end(self) -> None:
        self.skip_newlines()
        if self.peek() is not None:
            raise _Odd

    # statements

    def statement(self) -> Node:
        node = self.conditional() or self.assignment()
        while (token := self.peek()) is not None and token.is_word("if", "unless"):
            self.at += 1
            test = self.expression()
            body = Statement(node, self.source.between(self.tokens), self.tokens[0].line)
            node = If(((Not(test) if token.text == "unless" else test, (body,)),))
        return node

    def conditional(self) -> Node | None:
        token = self.peek()
        if token is None or not token.is_word("if", "unless"):
            return None
        self.at += 1
        test: Node | None = self.expression()
        if token.text == "unless" and test is not None:
            test = Not(test)
        self.accept_word("then")
        branches: list[tuple[Node | None, tuple[Statement, ...]]] = []
        while True:
            body, ended = self.body("elsif", "else", "end")
            branches.append((test, body))
            if ended == "end":
                return If(tuple(branches))
            test = self.expression() if ended == "elsif" else None
            self.accept_word("then")

    def body(self, *endings: str) -> tuple[tuple[Statement, ...], str]:
        """The statements up to one of `endings` at this level, and which it was."""
        inside: list[Token] = []
        level = 0
        while True:
            token = self.take()
            if level == 0 and token.is_word(*endings) and not (inside and inside[-1].is_operator(".", "&.")):
                return _statements(self.source, inside, self.depth + 1), token.text
            level += depth_change(token, inside)
            inside.append(token)

    def assignment(self) -> Node:
        target = self.expression()
        token = self.peek()
        if token is not None and token.is_operator("=", "||=", "+=", "<<=", "|="):
            is_name = isinstance(target, Call) and not target.block and (target.name == "[]" or not target.args)
            if not is_name:
                raise _Odd
            self.at += 1
            self.skip_newlines()
            return Assign(target, token.text, self.conditional() or self.assignment())
        return target

    # expressions

    def expression(self, level: int = 0) -> Node:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise _Odd
        try:
            return self.ternary() if level == 0 else self.both(level)
        finally:
            self.depth -= 1

    def ternary(self) -> Node:
        if self.accept_word("not"):
            return Not(self.expression())
        test = self.both(0)
        if not self.accept("?"):
            return test
        self.skip_newlines()
        yes = self.label_in_choice() or self.expression()
        if not (isinstance(yes, _Labelled)):
            self.skip_newlines()
            self.expect(":")
        self.skip_newlines()
        return Choice(test, yes.node if isinstance(yes, _Labelled) else yes, self.expression())

    def label_in_choice(self) -> _Labelled | None:
        """`a ? b : c` where `b :` was taken for a label."""
        token = self.peek()
        if token is None or token.kind is not Kind.LABEL or token.parts:
            return None
        self.at += 1
        return _Labelled(Call(None, token.text))

    def both(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self.unary()
        left = self.both(level + 1)
        while (token := self.peek()) is not None and self.is_infix(token, _LEVELS[level]):
            self.at += 1
            self.skip_newlines()
            left = Both(left, token.text, self.both(level + 1))
        return left

    @staticmethod
    def is_infix(token: Token, operators: tuple[str, ...]) -> bool:
        return token.text in operators and (token.kind is Kind.OPERATOR or token.is_word("and", "or"))

    def unary(self) -> Node:
        if self.accept("!"):
            return Not(self.unary())
        if self.accept("-"):
            operand = self.unary()
            if isinstance(operand, Literal) and isinstance(operand.value, int | float):
                return Literal(-operand.value)
            raise _Odd
        return self.postfix(self.primary())

    def postfix(self, node: Node) -> Node:
        while (token := self.peek()) is not None:
            if token.kind is Kind.NEWLINE:
                if not is_chained(self.tokens, self.at):
                    return node
                self.skip_newlines()
            elif token.is_operator(".", "&."):
                self.at += 1
                self.skip_newlines()
                node = self.call(node)
            elif token.is_operator("::"):
                self.at += 1
                node = self.call(node)
            elif token.is_operator("[") and not token.spaced:
                self.at += 1
                items, pairs = self.arguments("]")
                node = Call(node, "[]", items, pairs)
            else:
                return node
        return node

    def call(self, receiver: Node | None) -> Node:
        token = self.take()
        if receiver is not None and token.is_operator("("):  # .()
            items, pairs = self.arguments(")")
            return Call(receiver, "call", items, pairs, self.block())
        if token.kind not in (Kind.NAME, Kind.CONST):
            raise _Odd
        return self.call_named(receiver, token)

    def call_named(self, receiver: Node | None, token: Token) -> Node:
        args: tuple[Node, ...] = ()
        options: tuple[tuple[Node, Node], ...] = ()
        following = self.peek()
        if following is not None and following.is_operator("(") and not following.spaced:
            self.at += 1
            args, options = self.arguments(")")
        elif following is not None and self.starts_argument(following):
            self.no_do += 1
            try:
                args, options = self.arguments("")
            finally:
                self.no_do -= 1
        return Call(receiver, token.text, args, options, self.block())

    def starts_argument(self, token: Token) -> bool:
        """Whether a call without parentheses goes on with arguments."""
        if not token.spaced:
            return False
        if token.kind in _ARGUMENT_KINDS:
            return not token.is_word(*_NOT_ARGUMENTS)
        following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
        tight = following is not None and not following.spaced
        return (
            token.is_operator("->", "!", "::")
            or (token.is_operator("[", "*", "&", "-", "**", "(") and tight)
            or (token.is_operator("["))
        )

    def arguments(self, closing: str) -> tuple[tuple[Node, ...], tuple[tuple[Node, Node], ...]]:
        """Up to `closing`; "" is a call without parentheses, which ends where no comma follows."""
        items: list[Node] = []
        pairs: list[tuple[Node, Node]] = []
        before, self.no_do = self.no_do, 0 if closing else self.no_do
        while True:
            if closing:
                self.skip_newlines()
                if self.accept(closing):
                    break
            self.argument(items, pairs)
            if closing:
                self.skip_newlines()
            if self.accept(","):
                self.skip_newlines()
                continue
            if closing:
                self.expect(closing)
            break
        self.no_do = before
        return tuple(items), tuple(pairs)

    def argument(self, items: list[Node], pairs: list[tuple[Node, Node]]) -> None:
        token = self.peek()
        if token is not None and token.kind is Kind.LABEL:
            self.at += 1
            self.skip_newlines()
            pairs.append((self.key(token), self.expression()))
            return
        if self.accept("*", "**", "&"):
            items.append(Call(self.expression(), "*"))
            return
        value = self.expression()
        if self.accept("=>"):
            self.skip_newlines()
            pairs.append((value, self.expression()))
        else:
            items.append(value)

    def key(self, token: Token) -> Node:
        return SymbolOf(self.parts(token)) if token.parts else SymbolOf((token.text,))

    def primary(self) -> Node:
        token = self.take()
        if token.kind in (Kind.STRING, Kind.SYMBOL, Kind.SHELL):
            return self.string(token)
        if token.kind is Kind.WORDS or token.kind is Kind.SYMBOLS:
            return self.words(token)
        if token.kind is Kind.NUMBER:
            return Literal(_number(token.text))
        if token.kind in (Kind.REGEX, Kind.VARIABLE):
            return Opaque(token.text)
        if token.kind in (Kind.NAME, Kind.CONST):
            return self.named(token)
        if token.is_operator("("):
            self.skip_newlines()
            before, self.no_do = self.no_do, 0
            inner = self.expression()
            self.no_do = before
            self.skip_newlines()
            self.expect(")")
            return inner
        if token.is_operator("["):
            items, pairs = self.arguments("]")
            return Items((*items, Pairs(pairs)) if pairs else items)
        if token.is_operator("{"):
            items, pairs = self.arguments("}")
            if items:
                raise _Odd
            return Pairs(pairs)
        if token.is_operator("->"):
            return self.function()
        if token.is_operator("::"):
            return self.call(None)
        raise _Odd

    def named(self, token: Token) -> Node:
        constants = {"true": True, "false": False, "nil": None}
        if token.kind is Kind.NAME and token.text in constants:
            return Literal(constants[token.text])
        if token.text in ("lambda", "proc") and self.is_block_next():
            return self.function()
        if token.text == "begin":
            body, _ = self.body("end")
            return Call(None, "begin", block=Block((), body))
        if token.is_word("case", "def", "class", "module", "while", "until", "for", "end", "rescue", "when", "yield"):
            raise _Odd
        return self.call_named(None, token)

    def is_block_next(self) -> bool:
        token = self.peek()
        return token is not None and (token.is_operator("{") or token.is_word("do"))

    def function(self) -> Node:
        names: tuple[str, ...] = ()
        if self.accept("("):
            names = self.names_until(")")
        before, self.no_do = self.no_do, 0
        block = self.block()
        self.no_do = before
        if block is None:
            raise _Odd
        return Function(Block(names or block.names, block.body))

    def names_until(self, closing: str) -> tuple[str, ...]:
        names = []
        while not self.accept(closing):
            token = self.take()
            if token.kind in (Kind.NAME, Kind.LABEL):
                names.append(token.text)
        return tuple(names)

    def block(self) -> Block | None:
        token = self.peek()
        if token is None:
            return None
        if token.is_operator("{"):
            self.at += 1
            names = self.names_until("|") if self.accept("|") else ()
            return Block(names, self.in_braces())
        if token.is_word("do") and not self.no_do:
            self.at += 1
            self.skip_newlines()
            names = self.names_until("|") if self.accept("|") else ()
            body, _ = self.body("end")
            return Block(names, body)
        return None

    def in_braces(self) -> tuple[Statement, ...]:
        inside: list[Token] = []
        level = 0
        while True:
            token = self.take()
            if token.is_operator("}") and level == 0:
                return _statements(self.source, inside, self.depth + 1)
            level += depth_change(token, inside)
            inside.append(token)

    # strings

    def string(self, token: Token) -> Node:
        parts = self.parts(token)
        if token.kind is Kind.SYMBOL:
            return SymbolOf(parts)
        if token.kind is Kind.SHELL:
            return Opaque(self.source.text[token.start : token.end])
        following = self.peek()
        more: list[str | Node] = []
        while following is not None and following.kind is Kind.STRING:  # "a" "b" is one string
            self.at += 1
            more += self.parts(following)
            following = self.peek()
        parts = (*parts, *more)
        return Literal("".join(map(str, parts))) if all(isinstance(part, str) for part in parts) else Text(parts)

    def parts(self, token: Token) -> tuple[str | Node, ...]:
        return tuple(part if isinstance(part, str) else self.code(part, token.line) for part in token.parts)

    def code(self, code: Code, line: int) -> Node:
        tokens = [replace(token, line=line) for token in tokens_of(code.text)]
        if not tokens:
            return Literal("")
        found = _statements(_Source(code.text), tokens, self.depth + 1)
        node = found[0].node if len(found) == 1 else None
        return Opaque(code.text) if node is None else node

    def words(self, token: Token) -> Node:
        symbols = token.kind is Kind.SYMBOLS
        if token.text in "WI" and any("#{" in str(part) for part in token.parts):
            raise _Odd
        return Items(
            tuple(SymbolOf((part,)) if symbols else Literal(str(part)) for part in token.parts if isinstance(part, str))
        )


@dataclass(frozen=True, slots=True)
class _Labelled:
    node: Node = field(default_factory=lambda: Literal(None))


def _number(text: str) -> int | float:
    plain = text.replace("_", "")
    try:
        if plain[:2] in ("0x", "0X"):
            return int(plain, 16)
        if plain.isdigit():
            return int(plain, 8) if plain.startswith("0") and len(plain) > 1 else int(plain)
        return float(plain)
    except ValueError:
        raise _Odd from None
