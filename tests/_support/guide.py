"""The snippets of a guide as Python modules.

Each section (what follows a heading) is a module of its own: the guide's first snippet, which all others build on, and
the section's. Lines keep the numbers they have in the document, so that an error shows the place to mend.
"""

from __future__ import annotations

import re
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

_HEADING = re.compile(r"#{1,6} (.+)")


def write_sections(document: Path, directory: Path) -> dict[str, Path]:
    """One file for each section that has snippets, by its heading; a heading is there once.

    Raises:
        ValueError: two sections have the same heading.
    """
    lines = document.read_text().splitlines()
    sections = _snippet_lines(lines)
    opening, *_ = sections
    modules: dict[str, Path] = {}
    for heading, numbers in sections.items():
        if not numbers or heading == opening:
            continue
        kept = {*sections[opening], *numbers}
        text = "\n".join(line if number in kept else "" for number, line in enumerate(lines))
        slug = re.sub(r"\W+", "_", heading.lower()).strip("_")
        modules[heading] = directory / f"{document.stem}_{slug}.py"
        modules[heading].write_text(text.rstrip() + "\n")
    return modules


def _snippet_lines(lines: list[str]) -> dict[str, list[int]]:
    sections: dict[str, list[int]] = {}
    fence = ""
    for number, line in enumerate(lines):
        if line.startswith("```"):
            fence = "" if fence else line
        elif fence == "```python":
            sections[next(reversed(sections))].append(number)
        elif not fence and (heading := _HEADING.match(line)):
            if heading[1] in sections:
                raise ValueError(f"line {number + 1}: there is another section {heading[1]!r}")
            sections[heading[1]] = []
    return sections


def load(path: Path) -> ModuleType:
    """The module of a section, imported under the name of its file."""
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
