"""Where a statement of Ruby ends: at a newline or `;` in no bracket and no block, unless the line goes on. Pure."""

from __future__ import annotations

from midstream.deploy.scaffold.capistrano_tokens import Kind, Token


def words(text: str) -> frozenset[str]:
    """The words of `text`."""
    return frozenset(text.split())


_OPENS = words("if unless while until case def class module begin for do")
_AT_START = words("if unless while until")  # elsewhere they are modifiers
_CONTINUES = words(", . &. && || + - * / = => | ( [ { -> :: << == != ? : += ||= && and or not ! << & < > <= >= =~")


def split_statements(tokens: list[Token]) -> list[list[Token]]:
    """The tokens of each statement: up to a newline or `;` that is in no bracket and no block, and where the line does
    not go on."""
    out: list[list[Token]] = []
    now: list[Token] = []
    depth = 0
    for index, token in enumerate(tokens):
        ends = token.kind is Kind.NEWLINE or token.is_operator(";")
        if ends and depth <= 0:
            if now and not (token.kind is Kind.NEWLINE and (_goes_on(now[-1]) or is_chained(tokens, index))):
                out.append(now)
                now, depth = [], 0
            continue
        depth += depth_change(token, now)
        now.append(token)
    return [*out, now] if now else out


def depth_change(token: Token, before: list[Token]) -> int:
    """By how much `token` opens (1) or closes (-1) a bracket or a block. before: the tokens in front of it."""
    if token.kind is Kind.OPERATOR:
        return 1 if token.text in ("(", "[", "{") else -1 if token.text in (")", "]", "}") else 0
    if token.kind is not Kind.NAME or (before and before[-1].is_operator(".", "&.")):
        return 0
    if token.text == "end":
        return -1
    if token.text in _AT_START:
        return 1 if _starts_expression(before) else 0
    if token.text == "do":
        return 0 if _is_loop_do(before) else 1
    return 1 if token.text in _OPENS else 0


def _starts_expression(before: list[Token]) -> bool:
    if not before:
        return True
    last = before[-1]
    return (
        last.kind is Kind.NEWLINE
        or last.is_operator("=", "(", ";", "||=", "{", "|", "->")
        or last.is_word("do", "then", "else", "begin")
    )


def _is_loop_do(before: list[Token]) -> bool:
    """Whether this `do` belongs to a `while`, `until` or `for` on its line, which was counted already."""
    for token in reversed(before):
        if token.kind is Kind.NEWLINE:
            return False
        if token.is_word("while", "until", "for"):
            return True
    return False


def _goes_on(last: Token) -> bool:
    if last.kind is Kind.LABEL:
        return True
    return (last.kind is Kind.OPERATOR and last.text in _CONTINUES) or last.is_word("and", "or", "not")


def is_chained(tokens: list[Token], index: int) -> bool:
    """Whether the next line begins with `.method`."""
    following = next((token for token in tokens[index + 1 : index + 4] if token.kind is not Kind.NEWLINE), None)
    return following is not None and following.is_operator(".", "&.")
