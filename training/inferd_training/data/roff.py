r"""The prose of a manual page written in roff's man macros: what a reader sees, without headings, code and tables.

The macros are those of groff_man(7), the escapes those of groff(7). This is no typesetter: what it does not know it
leaves out, since a lost paragraph costs a training nothing and a misread one does.
"""

# ruff: noqa: RUF001 - the glyphs are what they look like

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator

_BREAKS = {"PP", "P", "LP", "IP", "HP", "SH", "SS", "TH", "RS", "RE", "br", "sp"}
_TAGS = {"TP", "TQ"}
"""These begin a paragraph too; the next line of text is its tag, set apart from what follows."""

_FONTS = {"B", "I", "SM", "SB"}
_ALTERNATING = {"BI", "BR", "IB", "IR", "RB", "RI"}
"""These join their arguments, in turns of two fonts, without a space."""

_BLOCKS = {"nf": "fi", "EX": "EE", "TS": "TE", "EQ": "EN", "SY": "YS"}
"""What is no prose, by its first macro: examples, tables, equations, synopses. The value is the macro that ends it."""

_DEFINITIONS = {"de", "de1", "am", "ig"}
"""These last until a line that is `..`, or a dot with their second argument (their first, for `ig`)."""

_MDOC = re.compile(r"^[.'][ \t]*Dd\b", re.MULTILINE)

_ESCAPE = re.compile(
    r"""\\(?:
        \((?P<two>..)                                   # \(aq: a glyph of two letters
      | \[(?P<long>[^\]\n]*)\]                          # \[u00E9]: a glyph by name
      | [fFmMYkngO](?:\[[^\]\n]*\]|\([^\n]{2}|[^\n])    # fonts, colours, registers
      | \*(?:\[[^\]\n]*\]|\((?P<string>[^\n]{2})|[^\n]) # strings
      | s(?:\[[^\]\n]*\]|'[^'\n]*'|[+-]?\(\d\d|[+-]?\d)? # sizes
      | [hvwlLbDNoXZHSxRABC]'[^'\n]*'                   # what takes an argument in quotes
      | (?P<one>.)
    )""",
    re.VERBOSE,
)

_ONE = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "'": "´", "`": "`", "t": " ", ".": ".", "_": "_"}
"""Escapes of one character that show something; the others (`\\&`, `\\/`, `\\%`, ...) show nothing."""

_GLYPHS = {
    "aq": "'", "dq": '"', "cq": "’", "oq": "‘", "lq": "“", "rq": "”", "bq": "‚", "Bq": "„", "fo": "‹", "fc": "›",
    "Fo": "«", "Fc": "»", "em": "—", "en": "–", "hy": "-", "mi": "-", "ga": "`", "ha": "^", "ti": "~", "rs": "\\",
    "bu": "•", "co": "©", "rg": "®", "tm": "™", "mu": "×", "eu": "€", "Eu": "€", "de": "°", "ss": "ß",
}  # fmt: skip
_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", ":": "\u0308", ",": "\u0327"}
"""By the sign that stands before its letter in a glyph's name: \\('e is an e with an acute accent."""

_STRINGS = {"lq": "“", "rq": "”", "Tm": "™"}


def paragraphs(source: str) -> Iterator[str]:
    """The paragraphs of a page, each a line of text. A page in mdoc, whose macros break sentences up, has none."""
    if _MDOC.search(source):
        return
    words: list[str] = []
    tagged = False
    for macro, rest in _lines(source):
        if macro in _BREAKS or macro in _TAGS:
            yield from _joined(words)
            tagged = macro in _TAGS
            continue
        words.append(_shown(macro, rest))
        if tagged:
            yield from _joined(words)
            tagged = False
    yield from _joined(words)


def _lines(source: str) -> Iterator[tuple[str | None, str]]:
    """The lines that may hold prose or end a paragraph: a macro's name (None for plain text), and what follows it."""
    until: set[str] = set()
    depth = 0
    for line in source.replace("\\\n", "").splitlines():
        control = re.match(r"[.'][ \t]*(\S*)[ \t]*(.*)", line)
        name = _uncommented(control[1]) if control else None
        rest = _uncommented(control[2] if control else line)
        if until:
            if name is not None and name in until:
                until = set()
                yield "br", ""
            continue
        if depth or (name in ("if", "ie", "el", "while")):
            # A conditional is for typesetters; it lasts until its braces close.
            depth = max(0, depth + line.count("\\{") - line.count("\\}"))
            continue
        if name in _DEFINITIONS:
            given = rest.split()[0 if name == "ig" else 1 :]
            until = {given[0] if given else "."}
        elif name in _BLOCKS:
            until = {_BLOCKS[name]}
            yield "br", ""
        elif name in _BREAKS:
            # Their arguments are headings and tags.
            yield name, ""
        elif name in _TAGS or name in _FONTS or name in _ALTERNATING:
            yield name, rest
        elif name is None:
            if not line.strip() or line[0].isspace():
                # An empty line ends a paragraph, a leading space begins a line.
                yield "br", ""
            yield None, rest


def _uncommented(line: str) -> str:
    r"""`line` without a comment, which begins with \" or \#."""
    found = re.search(r"(?<!\\)(?:\\\\)*\\[\"#]", line)
    return line if found is None else line[: found.end() - 2]


def _shown(macro: str | None, rest: str) -> str:
    if macro is None:
        return _plain(rest)
    joint = "" if macro in _ALTERNATING else " "
    return joint.join(_plain(argument) for argument in _arguments(rest))


def _arguments(rest: str) -> list[str]:
    """A macro's arguments: separated by spaces, kept together by double quotes, in which "" is one quote."""
    found = re.findall(r'"((?:[^"]|"")*)"?|((?:\\ |[^\s"])(?:\\ |\S)*)', rest)
    return [quoted.replace('""', '"') if quoted else bare for quoted, bare in found]


def _plain(text: str) -> str:
    return _ESCAPE.sub(_glyph, text)


def _glyph(found: re.Match[str]) -> str:
    if found["string"]:
        return _STRINGS.get(found["string"], "")
    if found["one"]:
        return _ONE.get(found["one"], "")
    return _named(found["two"] or found["long"] or "")


def _named(name: str) -> str:
    code = re.fullmatch(r"u([0-9A-Fa-f]{4,6})", name)
    if code:
        point = int(code[1], 16)
        return chr(point) if point <= sys.maxunicode and not 0xD800 <= point < 0xE000 else ""
    if len(name) == 2 and name[0] in _ACCENTS and name[1].isalpha():
        return unicodedata.normalize("NFC", name[1] + _ACCENTS[name[0]])
    return _GLYPHS.get(name, "")


def _joined(words: list[str]) -> Iterator[str]:
    text = " ".join(" ".join(words).split())
    words.clear()
    if text:
        yield text
