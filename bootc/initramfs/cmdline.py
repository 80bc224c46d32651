# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The kernel command line, as the initrd's programs read it. Imports nothing: the initrd packs it.

Words end at white space outside of double quotes; there are no escapes, and the quotes are dropped.
"""


def split(text: str) -> list[str]:
    """The words of a command line."""
    words: list[str] = []
    word = ""
    quoted = False
    for char in text:
        if char == '"':
            quoted = not quoted
        elif char.isspace() and not quoted:
            if word:
                words.append(word)
            word = ""
        else:
            word += char
    if word:
        words.append(word)
    return words


def last(words: list[str], key: str) -> str | None:
    """The value of the last `key=value` (the kernel's own rule), or None."""
    found = values(words, key)
    return found[-1] if found else None


def values(words: list[str], key: str) -> list[str]:
    """The values of every `key=value`, in order."""
    start = key + "="
    return [word[len(start) :] for word in words if word.startswith(start)]


def read(path: str = "/proc/cmdline") -> list[str]:
    """The words of the running kernel's command line."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return split(file.read())
