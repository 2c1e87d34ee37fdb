"""Where each key of a TOML document stands, so that a problem can name its line.

`tomllib` gives values without positions. This walks a document that `tomllib` has accepted already, so it only has to
find its way (strings, brackets, comments), never to judge.
"""

from __future__ import annotations

from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""Keys and, inside arrays, indexes; e.g. ``("activity_pool", 0, "processes")``."""


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every table header, key and array item of a valid TOML document."""
    walker = _Walker(text)
    walker.document()
    return walker.lines


class _Walker:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._table_counts: dict[Path, int] = {}
        self.lines: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while self._skip_blank(newlines=True):
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        is_array = self._text.startswith("[[", self._at)
        self._advance(2 if is_array else 1)
        line = self._line
        path: Path = ()
        names = self._key()
        for number, name in enumerate(names):
            path = (*path, name)
            if path in self._table_counts and (number < len(names) - 1 or not is_array):
                path = (*path, self._table_counts[path] - 1)
        self._advance(2 if is_array else 1)
        if is_array:
            self.lines.setdefault(path, line)
            count = self._table_counts.get(path, 0)
            self._table_counts[path] = count + 1
            path = (*path, count)
        self.lines[path] = line
        return path

    def _pair(self, table: Path) -> None:
        line = self._line
        path = table
        for name in self._key():
            path = (*path, name)
            self.lines.setdefault(path, line)
        self._skip_blank(newlines=False)
        self._advance(1)  # the equals sign
        self._skip_blank(newlines=False)
        self._value(path)

    def _key(self) -> list[str]:
        names: list[str] = []
        while True:
            self._skip_blank(newlines=False)
            if self._text[self._at] in "\"'":
                names.append(self._string())
            else:
                start = self._at
                while self._at < len(self._text) and (self._text[self._at].isalnum() or self._text[self._at] in "_-"):
                    self._at += 1
                names.append(self._text[start : self._at])
            self._skip_blank(newlines=False)
            if not self._text.startswith(".", self._at):
                return names
            self._advance(1)

    def _value(self, path: Path) -> None:
        char = self._text[self._at]
        if char in "\"'":
            self._string()
        elif char == "[":
            self._array(path)
        elif char == "{":
            self._inline_table(path)
        else:
            while self._at < len(self._text) and self._text[self._at] not in ",]}#\n":
                self._at += 1

    def _array(self, path: Path) -> None:
        self._advance(1)
        index = 0
        while self._skip_blank(newlines=True) and self._text[self._at] != "]":
            if self._text[self._at] == ",":
                self._advance(1)
                continue
            self.lines[*path, index] = self._line
            self._value((*path, index))
            index += 1
        self._advance(1)

    def _inline_table(self, path: Path) -> None:
        self._advance(1)
        while self._skip_blank(newlines=True) and self._text[self._at] != "}":
            if self._text[self._at] == ",":
                self._advance(1)
                continue
            self._pair(path)
        self._advance(1)

    def _string(self) -> str:
        quote = self._text[self._at]
        fence = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        start = self._at + len(fence)
        end = start
        while not self._text.startswith(fence, end):
            end += 2 if quote == '"' and self._text[end] == "\\" else 1
        while len(fence) == 3 and self._text.startswith(quote, end + 3):
            end += 1  # up to two quotes may stand right before the closing fence
        self._advance(end + len(fence) - self._at)
        return self._text[start:end]

    def _skip_blank(self, *, newlines: bool) -> bool:
        """Move past white space and comments; False at the end of the document."""
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif char in " \t\r" or (char == "\n" and newlines):
                self._advance(1)
            else:
                return True
        return False

    def _advance(self, count: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + count)
        self._at += count
