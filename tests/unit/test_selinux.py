# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Labels by the policy that lies in the tree."""

from __future__ import annotations

import stat

import pytest

from bootc.composefs.selinux import (
    XATTR,
    Policy,
    find_policy_name,
    literal_prefix,
    load_policy,
    parse_rules,
    relabel,
)
from bootc.errors import FormatError
from bootc.tree import Device, Directory, Inline, Leaf, Node, Special, Stat, Symlink, walk

BASE = "etc/selinux/targeted/contexts/files/"


def file(data: bytes = b"") -> Leaf:
    return Leaf(Stat(0o644), Inline(data))


def tree(files: dict[str, Node]) -> Directory:
    root = Directory(Stat(0o755))
    for path, node in files.items():
        *folders, name = path.encode().split(b"/")
        here = root
        for part in folders:
            below = here.entries.setdefault(part, Directory(Stat(0o755)))
            assert isinstance(below, Directory)
            here = below
        here.entries[name] = node
    return root


def read(leaf: Leaf, path: str) -> bytes:
    assert isinstance(leaf.content, Inline), path
    return leaf.content.data


def policy(rules: bytes, aliases: dict[bytes, bytes] | None = None) -> Policy:
    return Policy(rules=parse_rules(rules, "file_contexts"), aliases=aliases or {})


def labels(root: Directory) -> dict[bytes, bytes]:
    return {path: node.stat.xattrs[XATTR] for path, node in walk(root) if XATTR in node.stat.xattrs}


def test_the_last_rule_that_matches_counts() -> None:
    found = policy(b"/usr/bin/sh exact\n/usr(/.*)? general\n/etc/.* etc\n")
    assert found.find_label(b"/usr/bin/sh", b"-") == b"general"
    assert found.find_label(b"/usr", b"d") == b"general"
    assert found.find_label(b"/usrx", b"d") is None
    assert found.find_label(b"/etc/a/b", b"-") == b"etc"
    assert found.find_label(b"/etc", b"d") is None


def test_a_rule_may_want_a_type() -> None:
    kinds = {b"-": file(), b"l": Leaf(Stat(), Symlink(b"x")), b"p": Leaf(Stat(), Special(0o10000))}
    kinds[b"s"] = Leaf(Stat(), Special(stat.S_IFSOCK))
    kinds[b"b"] = Leaf(Stat(), Device(stat.S_IFBLK, 1))
    kinds[b"c"] = Leaf(Stat(), Device(stat.S_IFCHR, 1))
    text = b"".join(b"/.* -%s t_%s\n" % (kind, kind) for kind in [*kinds, b"d"])
    root = tree({f"n{kind.decode()}": leaf for kind, leaf in kinds.items()})
    root.entries[b"nd"] = Directory(Stat())
    relabel(root, policy(text))
    expected = {b"/n" + kind: b"t_" + kind for kind in [*kinds, b"d"]}
    assert labels(root) == {b"/": b"t_d", **expected}


def test_no_label_takes_the_old_one_away() -> None:
    root = tree({"run/x": file(), "other": file()})
    for _, node in walk(root):
        node.stat.xattrs = {XATTR: b"old", b"user.x": b"kept"}
    relabel(root, policy(b"/.* any\n/run(/.*)? <<none>>\n"))
    assert labels(root) == {b"/": b"any", b"/other": b"any"}
    relabel(root, None)
    assert labels(root) == {}
    assert all(node.stat.xattrs == {b"user.x": b"kept"} for _, node in walk(root))


def test_an_alias_counts_for_what_lies_below() -> None:
    root = tree({"srv/alias/bin/x": file(), "usr/bin/x": file()})
    relabel(root, policy(b"/usr/bin/.* bin\n/srv/.* srv\n", {b"/srv/alias": b"/usr"}))
    assert labels(root) == {b"/srv/alias/bin/x": b"bin", b"/usr/bin/x": b"bin"}


def test_a_hard_link_that_wants_two_labels_is_broken() -> None:
    leaf = file(b"data")
    # The walk is depth first with names sorted: /a/z comes before /b.
    root = tree({"b": leaf, "a/z": leaf, "c/y": leaf, "a/y": leaf})
    relabel(root, policy(b"/a/.* inner\n/[bc].* outer\n"))
    assert labels(root) == {
        b"/a/y": b"inner",
        b"/a/z": b"inner",
        b"/b": b"outer",
        b"/c": b"outer",
        b"/c/y": b"outer",
    }
    first, second, third = root.find("a/y"), root.find("a/z"), root.find("b")
    assert first is second is leaf
    assert isinstance(third, Leaf)
    assert third is not leaf
    assert third.content == leaf.content


@pytest.mark.parametrize(
    ("regex", "prefix"),
    [
        (rb"/usr/bin", b"/usr/bin"),
        (rb"/usr/bin(/.*)?", b"/usr/bin"),
        (rb"/usr/libx?", b"/usr/lib"),
        (rb"/usr/a*", b"/usr/"),
        (rb"/usr/a+", b"/usr/"),
        (rb"/usr/a{2}", b"/usr/"),
        (rb"/a\.b\+c.*", b"/a.b+c"),
        (rb"/a\.?", b"/a"),
        (rb"/a\d", b"/a"),
        (rb"/a|/b", b""),
        (rb"/a(b|c)", b"/a"),
        (rb"/a[|]", b"/a"),
        (rb"/a\|b", b"/a|b"),
        (rb".*", b""),
    ],
)
def test_prefix_of_an_expression(regex: bytes, prefix: bytes) -> None:
    assert literal_prefix(regex) == prefix


def test_expressions_match_whole_paths_of_any_bytes() -> None:
    found = policy(b"/usr/share/man|/usr/share/doc docs\n/u/.*\\.so(\\.[^/]*)* lib\n")
    assert found.find_label(b"/usr/share/doc", b"d") == b"docs"
    assert found.find_label(b"/usr/share/doc/x", b"-") is None
    assert found.find_label(b"/u/\xff\xfe.so.6", b"-") == b"lib"
    assert found.find_label(b"/u/x.so\n", b"-") is None


def test_the_config_names_the_policy() -> None:
    text = b"# SELINUX\nSELINUX=enforcing\n  selinuxType = targeted \nSELINUXTYPE=other\n"
    assert find_policy_name(tree({"etc/selinux/config": file(text)}), read) == "targeted"
    assert find_policy_name(tree({"etc/selinux/config": file(b"x\n")}), read) is None
    assert find_policy_name(tree({"etc/passwd": file()}), read) is None


def test_a_policy_is_read_in_order() -> None:
    files: dict[str, Node] = {
        "etc/selinux/config": file(b"SELINUXTYPE=targeted\n"),
        BASE + "file_contexts": file(b"# rules\n\n/.* main\n/l.* main\n"),
        BASE + "file_contexts.local": file(b"/l.* local\n/h.* local\n"),
        BASE + "file_contexts.homedirs": file(b"/h.* home\n"),
        BASE + "file_contexts.subs": file(b"/one /two\n/both /two\n"),
        BASE + "file_contexts.subs_dist": file(b"/both /three\n"),
    }
    found = load_policy(tree(files), read)
    assert found is not None
    assert [found.find_label(path, b"-") for path in (b"/a", b"/l", b"/h")] == [
        b"main",
        b"local",
        b"home",
    ]
    assert found.aliases == {b"/one": b"/two", b"/both": b"/three"}
    del files[BASE + "file_contexts"]
    with pytest.raises(FormatError, match="is missing"):
        load_policy(tree(files), read)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"/a", "expected REGEX"),
        (b"/a -- b c", "expected REGEX"),
        (b"/a -x b", "unknown file type"),
        (b"/a( b", "bad expression"),
        (b"/a{9999999999} b", "bad expression"),
    ],
)
def test_a_bad_rule_is_named_by_its_line(line: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        parse_rules(b"# ok\n" + line + b"\n", "file_contexts")
    assert caught.value.where == "line 2"
