"""What is printed for people: without the characters by which a name, a label or a path would command a terminal.

Escape sequences colour, move and overwrite lines, set the title, or hide what stands there (CWE-150); characters that turn the direction
of writing show a name as another (CVE-2021-42574). They are shown as Python would write them. JSON keeps every text exactly.
"""

from __future__ import annotations

import re

# The controls but for the tab and the line feed; what some terminals take for a line break; directions of writing that are overridden;
# halves of characters, by which names of files are held that are no UTF-8.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_LINE = 4000  # characters: enough for a path of any length


def clean(text: str) -> str:
    """The text with unsafe characters escaped; its lines stay lines."""
    return UNSAFE.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """As `clean`, for a name, label or path: a line break in it is escaped, too, so that it cannot pass for a line of ours."""
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


def message(text: str) -> str:
    """An error or a warning: what follows its first line is set in, and a line without an end is cut with what is left out."""
    first, *others = (_cut(line) for line in clean(text).split("\n"))
    return "\n".join([first, *(line if not line or line[0].isspace() else f"  {line}" for line in others)])


def _cut(line: str) -> str:
    left = len(line) - LONGEST_LINE
    return line if left <= 0 else f"{line[:LONGEST_LINE]}... ({left:,} more characters)"


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character.encode("unicode_escape").decode("ascii")
