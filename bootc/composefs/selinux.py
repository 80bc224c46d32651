# SPDX-License-Identifier: Apache-2.0 OR MIT
"""SELinux labels of a tree, by the policy that the tree itself holds.

`/etc/selinux/config` names the policy: the value of the first line with a `=` whose key is
SELINUXTYPE (whatever its case). Without such a line nothing has a label. The policy's rules lie in
`/etc/selinux/TYPE/contexts/files/`:

    file_contexts, file_contexts.local, file_contexts.homedirs (read in this order; the last two
    may be missing)
        REGEX [-T] CONTEXT     T: `-` file, d, l, p (fifo), s (socket), b, c; without it, any type
    file_contexts.subs, file_contexts.subs_dist (both may be missing)
        ALIAS ORIGINAL         what lies at or below ALIAS is looked up as if it were at ORIGINAL

Regular expressions are of bytes and match the whole path. The last rule that matches counts,
however specific the others are (libselinux sorts them; composefs does not, and the label is part
of an image's identity). The context `<<none>>` means no label. `#` starts a comment line.

A hard link gets the label of the path that is met first (depth first, names sorted); a path that
wants another one gets a copy of the node.

Rules are many and paths are many, so rules are kept by the directory that they begin with in plain
letters, and for each directory the few that can match below it are listed once.
"""

from __future__ import annotations

import re
import stat as st
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bootc.errors import FormatError
from bootc.tree import Directory, Leaf, Node, walk

XATTR = b"security.selinux"
CONFIG = "etc/selinux/config"
_NONE = b"<<none>>"
_TYPES = {
    b"--": b"-",
    b"-d": b"d",
    b"-l": b"l",
    b"-p": b"p",
    b"-s": b"s",
    b"-b": b"b",
    b"-c": b"c",
}
_KINDS = {
    st.S_IFREG: b"-",
    st.S_IFLNK: b"l",
    st.S_IFIFO: b"p",
    st.S_IFSOCK: b"s",
    st.S_IFBLK: b"b",
    st.S_IFCHR: b"c",
}
_META = frozenset(b".^$*+?()[]{}|\\")

ReadFile = Callable[[Leaf, str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A line of file_contexts. `prefix` is what every path that it matches begins with."""

    order: int
    match: Callable[[bytes], object]
    prefix: bytes
    kind: bytes | None
    context: bytes | None


@dataclass(slots=True, kw_only=True)
class Policy:
    """The rules of a policy; `find_label` is its question."""

    rules: list[Rule]
    aliases: dict[bytes, bytes] = field(default_factory=dict)
    _near: dict[bytes, list[Rule]] = field(default_factory=dict)

    def find_label(self, path: bytes, kind: bytes) -> bytes | None:
        """The label of `path` (absolute; `kind` is a type letter), or None."""
        near = self._find_near(path[: path.rfind(b"/") + 1])
        for rule in near:
            if (
                (rule.kind is None or rule.kind == kind)
                and path.startswith(rule.prefix)
                and rule.match(path)
            ):
                return rule.context
        return None

    def _find_near(self, folder: bytes) -> list[Rule]:
        """The rules that can match something in `folder` (it ends with a slash), last one first.

        They are among those of the folder above it, so each level has fewer to look at.
        """
        missing: list[bytes] = []
        at = folder
        while at not in self._near and at:
            missing.append(at)
            at = at[: at.rfind(b"/", 0, -1) + 1]
        near = self._near[at] if at in self._near else self.rules[::-1]
        for below in reversed(missing):
            near = self._near[below] = [
                rule
                for rule in near
                if below.startswith(rule.prefix) or rule.prefix.startswith(below)
            ]
        return near


def literal_prefix(regex: bytes) -> bytes:
    """What every match of `regex` begins with, as far as that is easy to see."""
    found = bytearray()
    at = 0
    while at < len(regex):
        char = regex[at]
        if char == 0x5C:
            if at + 1 >= len(regex) or chr(regex[at + 1]).isalnum():
                break
            char = regex[at + 1]
            at += 1
        elif char in _META:
            break
        found.append(char)
        at += 1
    rest = regex[at:]
    if rest[:1] in (b"*", b"?", b"{", b"+"):
        del found[-1:]
    return b"" if _has_choice(regex) else bytes(found)


def _has_choice(regex: bytes) -> bool:
    """Whether there is a `|` outside of parentheses and classes."""
    depth = at = 0
    in_class = False
    while at < len(regex):
        match regex[at : at + 1]:
            case b"\\":
                at += 1
            case b"[" if not in_class:
                in_class = True
            case b"]":
                in_class = False
            case b"(" if not in_class:
                depth += 1
            case b")" if not in_class:
                depth -= 1
            case b"|" if not in_class and depth == 0:
                return True
        at += 1
    return False


def parse_rules(data: bytes, source: str, first: int = 0) -> list[Rule]:
    """The rules of one file; `first` is the order of its first one."""
    rules: list[Rule] = []
    for number, line in _lines(data):
        words = line.split()
        kind = None
        if len(words) == 3:
            kind = _TYPES.get(words[1])
            if kind is None:
                raise FormatError(source, f"line {number}", f"unknown file type {words[1]!r}")
        elif len(words) != 2:
            raise FormatError(source, f"line {number}", "expected REGEX [-T] CONTEXT")
        regex = words[0]
        try:
            pattern = re.compile(b"(?:" + regex + b")")
        except (re.error, RecursionError, OverflowError) as error:
            raise FormatError(source, f"line {number}", f"bad expression: {error}") from error
        rules.append(
            Rule(
                order=first + len(rules),
                match=pattern.fullmatch,
                prefix=literal_prefix(regex),
                kind=kind,
                context=None if words[-1] == _NONE else words[-1],
            )
        )
    return rules


def parse_aliases(data: bytes, source: str) -> dict[bytes, bytes]:
    """{alias: original} of a `.subs` file."""
    found: dict[bytes, bytes] = {}
    for number, line in _lines(data):
        words = line.split()
        if len(words) != 2:
            raise FormatError(source, f"line {number}", "expected ALIAS ORIGINAL")
        found[words[0]] = words[1]
    return found


def _lines(data: bytes) -> Iterable[tuple[int, bytes]]:
    for number, raw in enumerate(data.split(b"\n"), start=1):
        line = raw.strip()
        if line and not line.startswith(b"#"):
            yield number, line


def find_policy_name(root: Directory, read: ReadFile) -> str | None:
    """The name of the tree's policy, or None if it has none."""
    config = root.find(CONFIG)
    if not isinstance(config, Leaf):
        return None
    for line in read(config, f"/{CONFIG}").decode("utf-8", "surrogateescape").split("\n"):
        key, equals, value = line.partition("=")
        if equals and key.strip().lower() == "selinuxtype":
            return value.strip()
    return None


def load_policy(root: Directory, read: ReadFile) -> Policy | None:
    """The policy that the tree names, or None. `read` gives a file's content.

    Raises `FormatError` if the policy's file_contexts is missing or bad.
    """
    name = find_policy_name(root, read)
    if name is None:
        return None
    base = f"etc/selinux/{name}/contexts/files"
    rules: list[Rule] = []
    aliases: dict[bytes, bytes] = {}
    for suffix in ("", ".local", ".homedirs"):
        path = f"{base}/file_contexts{suffix}"
        leaf = root.find(path.encode("utf-8", "surrogateescape"))
        if isinstance(leaf, Leaf):
            rules += parse_rules(read(leaf, f"/{path}"), f"/{path}", len(rules))
        elif not suffix:
            raise FormatError(
                f"/{path}",
                None,
                f"is missing, but /{CONFIG} names the policy {name!r}",
                hint="install the policy in the image, or remove its SELINUXTYPE",
            )
    for suffix in (".subs", ".subs_dist"):
        path = f"{base}/file_contexts{suffix}"
        leaf = root.find(path.encode("utf-8", "surrogateescape"))
        if isinstance(leaf, Leaf):
            aliases |= parse_aliases(read(leaf, f"/{path}"), f"/{path}")
    return Policy(rules=rules, aliases=aliases)


def relabel(root: Directory, policy: Policy | None) -> None:
    """Give every node the label that `policy` has for it, and none to the others."""
    if policy is None:
        for _, node in walk(root):
            node.stat.xattrs.pop(XATTR, None)
        return
    labelled: dict[int, Leaf] = {}
    _set(root, policy.find_label(b"/", b"d"))
    stack = [(b"", root, iter(root.sorted()))]
    while stack:
        base, folder, entries = stack[-1]
        following = next(entries, None)
        if following is None:
            stack.pop()
            continue
        name, node = following
        path = base + b"/" + name
        path = policy.aliases.get(path, path)
        if isinstance(node, Directory):
            _set(node, policy.find_label(path, b"d"))
            stack.append((path, node, iter(node.sorted())))
            continue
        label = policy.find_label(path, _KINDS[node.kind])
        if id(node) in labelled and node.stat.xattrs.get(XATTR) != label:
            node = Leaf(node.stat.copy(), node.content)
            folder.entries[name] = node
        labelled[id(node)] = node
        _set(node, label)


def _set(node: Node, label: bytes | None) -> None:
    if label is None:
        node.stat.xattrs.pop(XATTR, None)
    else:
        node.stat.xattrs[XATTR] = label
