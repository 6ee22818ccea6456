"""Ruby text into tokens, as far as Capistrano's files need it. Pure; never raises: what is odd becomes an odd token.

Here: strings with their `#{…}` parts kept as source, %-literals, heredocs, symbols, labels, numbers, comments. Not here:
any meaning. Linear in the length of the text.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}
_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "s": " ",
    "r": "\r",
    "0": "\0",
    "e": "\x1b",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
}
_BLANK = re.compile(r"(?:[ \t\r\f\v]|\\\r?\n)+")
_WORD = re.compile(
    r"[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*[?!]?(?!=[^=~>])|[A-Za-z_\u0080-\U0010ffff]\w*"
)
_VARIABLE = re.compile(r"@@?[A-Za-z_]\w*|\$(?:[A-Za-z_]\w*|[^\s\w])")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F_]+|[0-9][0-9_]*(?:\.[0-9][0-9_]*)?(?:[eE][+-]?[0-9]+)?")
_SYMBOL = re.compile(r":([A-Za-z_][A-Za-z0-9_]*[?!=]?(?![A-Za-z0-9_]))(?<!=)|:([A-Za-z_][A-Za-z0-9_]*)")
_HEREDOC = re.compile(r"<<([~-]?)(?:([\"'])([A-Za-z_]\w*)\2|([A-Z_]\w*))")
_PERCENT = re.compile(r"%([wWiIqQrxs]?)([^A-Za-z0-9\s])")
_DOCUMENT = re.compile(r"^=begin\b.*?(?:^=end\b[^\n]*|\Z)", re.DOTALL | re.MULTILINE)
_OPERATOR = re.compile(
    r"\*\*=|<=>|===|\.\.\.|<<=|>>=|&&=|\|\|=|&\.|\*\*|==|!=|>=|<=|=>|->|=~|!~|&&|\|\||<<|>>|\+=|-=|\*=|/=|%=|\|=|&=|::|\.\.|."
    , re.DOTALL)  # fmt: skip
_BEFORE_VALUE = re.compile(
    r"if|unless|while|until|and|or|not|return|when|in|then|else|elsif|do|case|puts|yield|next|break|raise"
)


class Kind(enum.Enum):
    NAME = enum.auto()
    CONST = enum.auto()
    VARIABLE = enum.auto()  # @x, @@x, $x
    STRING = enum.auto()
    SHELL = enum.auto()  # `…`, %x
    WORDS = enum.auto()  # %w, %W
    SYMBOLS = enum.auto()  # %i, %I
    SYMBOL = enum.auto()
    LABEL = enum.auto()  # `key:` of a hash
    NUMBER = enum.auto()
    REGEX = enum.auto()
    OPERATOR = enum.auto()
    NEWLINE = enum.auto()


@dataclass(frozen=True, slots=True)
class Code:
    """Source inside `#{…}`."""

    text: str


@dataclass(slots=True)
class Token:
    """One token. text: of names, operators, numbers as written. parts: of strings and the like, text and `Code`;
    of WORDS and SYMBOLS one string for each item, where the item is plain. spaced: white space stands before it.
    line: from 1. start, end: its place in the text."""

    kind: Kind
    text: str
    line: int
    start: int
    end: int
    spaced: bool = False
    parts: tuple[str | Code, ...] = ()

    def is_operator(self, *texts: str) -> bool:
        return self.kind is Kind.OPERATOR and self.text in texts

    def is_word(self, *texts: str) -> bool:
        return self.kind is Kind.NAME and self.text in texts


def tokens_of(text: str) -> list[Token]:
    """The tokens of `text`, without comments, up to `__END__`."""
    return _Scanner(text).all()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.out: list[Token] = []
        self.heredocs: list[tuple[Token, str, str, bool]] = []  # token, ending, kind of indent, raw
        self.closers: dict[str, int] = {}

    def all(self) -> list[Token]:
        while self.at < len(self.text):
            self._one()
        return self.out

    def _one(self) -> None:
        blank = _BLANK.match(self.text, self.at)
        if blank:
            self._advance(blank.end())
        spaced = blank is not None or not self.out or self.out[-1].kind is Kind.NEWLINE
        if self.at >= len(self.text):
            return
        char = self.text[self.at]
        if char == "\n":
            self._newline()
        elif char == "#":
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end
        elif self._at_line_start() and self.text.startswith("__END__", self.at):
            self.at = len(self.text)
        elif self._at_line_start() and (document := _DOCUMENT.match(self.text, self.at)):
            self._advance(document.end())
        else:
            self._token(char, spaced)

    def _at_line_start(self) -> bool:
        return self.at == 0 or self.text[self.at - 1] == "\n"

    def _advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def _add(self, kind: Kind, text: str, end: int, spaced: bool, parts: tuple[str | Code, ...] = ()) -> Token:
        token = Token(kind, text, self.line, self.at, end, spaced, parts)
        self.out.append(token)
        self._advance(end)
        return token

    def _newline(self) -> None:
        self._add(Kind.NEWLINE, "\n", self.at + 1, False)
        waiting, self.heredocs = self.heredocs, []
        for token, ending, indent, raw in waiting:
            self._read_heredoc(token, ending, indent, raw)

    def _read_heredoc(self, token: Token, ending: str, indent: str, raw: bool) -> None:
        before = r"[ \t]*" if indent else ""
        close = re.compile(rf"^{before}{re.escape(ending)}[ \t]*\r?$", re.MULTILINE)
        found = close.search(self.text, self.at)
        body = self.text[self.at : found.start() if found else len(self.text)]
        if indent == "~":
            body = _dedented(body)
        token.parts = (body,) if raw else _parts(body)
        self._advance(found.end() if found else len(self.text))

    def _token(self, char: str, spaced: bool) -> None:
        if char in "\"'`":
            self._quoted(char, spaced)
        elif char == ":" and self._symbol(spaced):
            return
        elif char in "@$" and (match := _VARIABLE.match(self.text, self.at)):
            self._add(Kind.VARIABLE, match[0], match.end(), spaced)
        elif char.isdigit() and (match := _NUMBER.match(self.text, self.at)):
            self._add(Kind.NUMBER, match[0], match.end(), spaced)
        elif match := _WORD.match(self.text, self.at):
            self._word(match[0], spaced)
        elif char in "<%/" and self._literal(char, spaced):
            return
        else:
            match = _OPERATOR.match(self.text, self.at)
            self._add(Kind.OPERATOR, match[0] if match else char, match.end() if match else self.at + 1, spaced)

    def _word(self, word: str, spaced: bool) -> None:
        end = self.at + len(word)
        if self._is_label(word, end):
            self._add(Kind.LABEL, word, end + 1, spaced)
            return
        self._add(Kind.CONST if word[0].isupper() else Kind.NAME, word, end, spaced)

    def _is_label(self, word: str, end: int) -> bool:
        if not self.text.startswith(":", end) or self.text.startswith("::", end):
            return False
        return not (self.out and self.out[-1].is_operator(".", "&."))

    def _symbol(self, spaced: bool) -> bool:
        if self.text.startswith((':"', ":'"), self.at):
            quote = self.text[self.at + 1]
            end = self._closing(self.at + 2, quote, quote)
            body = self.text[self.at + 2 : max(self.at + 2, end - 1)]
            self._add(Kind.SYMBOL, "", end, spaced, _parts(body) if quote == '"' else (_unescaped_single(body, "'"),))
            return True
        match = _SYMBOL.match(self.text, self.at)
        if not match or self.text.startswith("::", self.at) or self._is_ternary_colon(spaced):
            return False
        self._add(Kind.SYMBOL, match[1] or match[2], match.end(), spaced, (match[1] or match[2],))
        return True

    def _is_ternary_colon(self, spaced: bool) -> bool:
        return not spaced and bool(self.out) and _ends_value(self.out[-1])

    def _quoted(self, quote: str, spaced: bool) -> None:
        end = self._closing(self.at + 1, quote, quote)
        body = self.text[self.at + 1 : max(self.at + 1, end - 1)]
        if quote == "'":
            parts: tuple[str | Code, ...] = (_unescaped_single(body, "'"),)
        else:
            parts = _parts(body)
        if quote != "`" and self._is_label("", end) and self._may_be_key():
            self._add(Kind.LABEL, "", end + 1, spaced, parts)
            return
        self._add(Kind.SHELL if quote == "`" else Kind.STRING, "", end, spaced, parts)

    def _may_be_key(self) -> bool:
        return bool(self.out) and (self.out[-1].is_operator("{", ",", "(") or self.out[-1].kind is Kind.NEWLINE)

    def _literal(self, char: str, spaced: bool) -> bool:
        """A %-literal, a heredoc or a regular expression, where a value may stand."""
        follows_value = bool(self.out) and _ends_value(self.out[-1])
        following = self.text[self.at + 1 : self.at + 2]
        is_argument = bool(self.out) and self.out[-1].kind is Kind.NAME and spaced and not following.isspace()
        if follows_value and not is_argument:
            return False
        if char == "<" and (match := _HEREDOC.match(self.text, self.at)):
            token = self._add(Kind.STRING, "", match.end(), spaced, ("",))
            self.heredocs.append((token, match[3] or match[4], match[1], match[2] == "'"))
            return True
        if (
            char == "%"
            and (match := _PERCENT.match(self.text, self.at))
            and (not follows_value or match[2] in "([{<|!/")
        ):
            return self._percent(match, spaced)
        if char == "/":
            end = self._closing(self.at + 1, "/", "/")
            while end < len(self.text) and self.text[end] in "imxounse":
                end += 1
            self._add(Kind.REGEX, self.text[self.at : end], end, spaced)
            return True
        return False

    def _percent(self, match: re.Match[str], spaced: bool) -> bool:
        letter, opening = match[1], match[2]
        if not letter and opening == "=":
            return False
        end = self._closing(match.end(), opening, _CLOSING.get(opening, opening))
        body = self.text[match.end() : max(match.end(), end - 1)]
        if letter in ("w", "W", "i", "I"):
            items = tuple(item.replace("\\ ", " ") for item in re.findall(r"(?:\\.|[^\s\\])+", body, re.DOTALL))
            kind = Kind.WORDS if letter in "wW" else Kind.SYMBOLS
            self._add(kind, letter, end, spaced, items)
        elif letter == "r":
            self._add(Kind.REGEX, self.text[self.at : end], end, spaced)
        elif letter == "q":
            self._add(Kind.STRING, "", end, spaced, (_unescaped_single(body, opening),))
        elif letter == "s":
            self._add(Kind.SYMBOL, "", end, spaced, (body,))
        else:
            self._add(Kind.SHELL if letter == "x" else Kind.STRING, "", end, spaced, _parts(body))
        return True

    def _closing(self, at: int, opening: str, closing: str) -> int:
        """The place after `closing`, nesting and `#{…}` respected; the end of the text where there is none. A kind of
        quote that is known not to close is not looked for again: else text full of quotes would cost its square."""
        if self.closers.get(closing, len(self.text) + 1) <= at:
            return len(self.text)
        depth, where = 0, at
        while where < len(self.text):
            char = self.text[where]
            if char == "\\":
                where += 2
                continue
            if char == "#" and closing != "'" and self.text.startswith("#{", where):
                where = _code_end(self.text, where + 2)
                continue
            if char == closing and depth == 0:
                return where + 1
            if char == opening and opening != closing:
                depth += 1
            elif char == closing:
                depth -= 1
            where += 1
        self.closers.setdefault(closing, at)
        return len(self.text)


def _ends_value(token: Token) -> bool:
    if token.kind is Kind.OPERATOR:
        return token.text in (")", "]", "}")
    if token.kind is Kind.NAME:
        return _BEFORE_VALUE.fullmatch(token.text) is None
    return token.kind not in (Kind.NEWLINE, Kind.LABEL)


def _code_end(text: str, at: int) -> int:
    """The place after the `}` that ends `#{`. Quotes inside are skipped as far as they close on the line."""
    depth = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 2
            continue
        if char == "}" and depth == 0:
            return at + 1
        if char in "\"'":
            end = re.compile(rf"(?:\\.|[^{char}\\\n])*{char}").match(text, at + 1)
            at = end.end() if end else at + 1
            continue
        depth += {"{": 1, "}": -1}.get(char, 0)
        at += 1
    return len(text)


def _parts(body: str) -> tuple[str | Code, ...]:
    """The inside of a double-quoted string: text, its escapes resolved, and `Code`."""
    parts: list[str | Code] = []
    text: list[str] = []
    at = 0
    while at < len(body):
        char = body[at]
        if char == "\\" and at + 1 < len(body):
            piece, at = _escape(body, at + 1)
            text.append(piece)
        elif char == "#" and body.startswith("#{", at):
            end = _code_end(body, at + 2)
            parts += ["".join(text), Code(body[at + 2 : max(at + 2, end - 1)])]
            text, at = [], end
        else:
            text.append(char)
            at += 1
    return tuple(part for part in (*parts, "".join(text)) if part != "") or ("",)


def _escape(body: str, at: int) -> tuple[str, int]:
    char = body[at]
    if char == "\n":
        return "", at + 1
    if match := re.compile(r"u\{?([0-9a-fA-F]{4,6})\}?|x([0-9a-fA-F]{1,2})").match(body, at):
        code = int(match[1] or match[2], 16)
        return (chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"), match.end()
    return _ESCAPES.get(char, char), at + 1


def _unescaped_single(body: str, quote: str) -> str:
    return re.sub(r"\\([\\" + re.escape(quote + _CLOSING.get(quote, "")) + "])", r"\1", body)


def _dedented(body: str) -> str:
    """As `<<~` does: the indentation of the least indented line goes."""
    indents = [len(line) - len(line.lstrip(" \t")) for line in body.split("\n") if line.strip()]
    return (
        "\n".join(line[min(indents) :] if line.strip() else line.lstrip(" \t") for line in body.split("\n"))
        if indents
        else body
    )
