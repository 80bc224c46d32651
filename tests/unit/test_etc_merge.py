# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The merge of /etc against a model: random trees, and a test for each rule of the contract."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.deploy import etc_merge
from bootc.deploy.etc_merge import Conflict, ConflictKind, MergePlan, apply_merge, plan_merge
from bootc.deploy.etc_tree import read_live
from bootc.errors import BootcError
from bootc.tree import (
    Content,
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Sparse,
    Special,
    Stat,
    Symlink,
)
from tests.cuts import run_until_cut

NAMES = ["a", "b", "c", "d"]


def file(
    data: bytes = b"", *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int = 0
) -> Leaf:
    return Leaf(Stat(mode, uid, gid, mtime, mtime), Inline(data))


def folder(mode: int = 0o755, **entries: Directory | Leaf) -> Directory:
    return Directory(Stat(mode=mode), {name.encode(): node for name, node in entries.items()})


def link(target: str) -> Leaf:
    return Leaf(Stat(mode=0o777), Symlink(target.encode()))


def external(data: bytes, algorithm: Algorithm = Algorithm.SHA512) -> Leaf:
    return Leaf(Stat(mode=0o644), External(len(data), digest_bytes(data, algorithm)))


# -- Comparing


def test_what_is_added_modified_and_removed() -> None:
    pristine = folder(same=file(b"1"), mine=file(b"1"), gone=file(b"1"), old=folder(x=file()))
    current = folder(
        same=file(b"1"), mine=file(b"2"), fresh=folder(y=folder(), z=file()), link=link("same")
    )
    assert plan_merge(pristine, current) == MergePlan(
        added=("fresh", "fresh/y", "fresh/z", "link"),
        modified=("mine",),
        removed=("gone", "old"),
    )


@pytest.mark.parametrize(
    "other",
    [
        file(b"1", mode=0o600),
        file(b"1", uid=1),
        file(b"1", gid=1),
        file(b"2"),
        file(b""),
        link("1"),
        Leaf(Stat(mode=0o644, xattrs={b"user.x": b""}), Inline(b"1")),
        external(b"2"),
        Leaf(Stat(mode=0o644), Sparse(1)),
    ],
)
def test_each_aspect_makes_a_modification(other: Leaf) -> None:
    assert plan_merge(folder(f=file(b"1")), folder(f=other)).modified == ("f",)
    assert plan_merge(folder(f=other), folder(f=file(b"1"))).modified == ("f",)


def test_times_are_no_modification() -> None:
    later = file(b"1", mtime=7)
    assert plan_merge(folder(f=file(b"1")), folder(f=later)).is_empty


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (external(b"q" * 100), external(b"q" * 100)),
        (external(b"abc"), file(b"abc")),
        (external(b"abc", Algorithm.SHA256), file(b"abc")),
        (Leaf(Stat(mode=0o644), Sparse(3)), file(bytes(3))),
        (Leaf(Stat(mode=0o644), Sparse(3)), external(bytes(3))),
        (
            Leaf(Stat(mode=0o644), External(9, b"1" * 64, b"path")),
            Leaf(Stat(mode=0o644), External(9, b"1" * 64)),
        ),
    ],
)
def test_the_same_content_in_other_forms_is_the_same(left: Leaf, right: Leaf) -> None:
    assert plan_merge(folder(f=left), folder(f=right)).is_empty
    assert plan_merge(folder(f=right), folder(f=left)).is_empty


def test_defect_10_two_files_with_verity_are_compared_by_their_digests() -> None:
    one, two = external(b"1" * 100), external(b"2" * 100)
    assert plan_merge(folder(f=one), folder(f=two)).modified == ("f",)
    unknown = Leaf(Stat(mode=0o644), External(100, None, b"path"))
    assert plan_merge(folder(f=unknown), folder(f=unknown)).modified == ("f",)


def test_sockets_fifos_and_devices_take_no_part() -> None:
    odd: list[Content] = [Special(stat.S_IFIFO), Special(stat.S_IFSOCK), Device(stat.S_IFCHR, 259)]
    for content in odd:
        node = Leaf(Stat(mode=0o600), content)
        assert plan_merge(folder(), folder(f=node)).is_empty
        assert plan_merge(folder(f=node), folder()).is_empty
        assert plan_merge(folder(f=node), folder(f=file())).added == ("f",)


def test_a_folder_that_new_dropped_is_made_again_for_what_was_changed_in_it() -> None:
    pristine = folder(d=folder(e=folder(f=file(b"1"), g=file())))
    current = folder(d=folder(e=folder(f=file(b"2"), g=file())))
    assert plan_merge(pristine, current, folder()) == MergePlan(
        modified=("d/e/f",), recreated=("d", "d/e")
    )
    assert plan_merge(pristine, pristine, folder()).is_empty
    gone = folder(d=folder(e=folder(g=file())))
    assert plan_merge(pristine, gone, folder()) == MergePlan(removed=("d/e/f",))


def test_conflicts_both_ways_with_their_texts() -> None:
    pristine = folder(f=file(b"1"), d=folder(x=file(b"1")))
    current = folder(f=file(b"2"), d=folder(x=file(b"2")), n=folder())
    new = folder(f=folder(), d=file(), n=link("f"))
    plan = plan_merge(pristine, current, new)
    assert plan.conflicts == (
        Conflict(path="d", now=ConflictKind.FILE),
        Conflict(path="f", now=ConflictKind.DIRECTORY),
        Conflict(path="n", now=ConflictKind.FILE),
    )
    assert [str(conflict) for conflict in plan.conflicts[:2]] == [
        "Directory 'd' now defaults to a file in new etc",
        "File 'f' now defaults to a directory in new etc",
    ]
    with pytest.raises(BootcError, match="Merge conflicts found in etc: Directory 'd' now"):
        etc_merge.need_mergeable(plan)


def test_what_was_not_changed_here_may_become_anything() -> None:
    pristine = folder(f=file(b"1"), d=folder(x=file(b"1")))
    assert plan_merge(pristine, pristine, folder(f=folder(), d=file())).is_empty


# -- Carrying it out


def write(tree: Directory, where: Path) -> Path:
    where.mkdir(exist_ok=True)
    for raw, node in tree.entries.items():
        path = where / os.fsdecode(raw)
        if isinstance(node, Directory):
            write(node, path)
            continue
        match node.content:
            case Inline(data=data):
                path.write_bytes(data)
                path.chmod(node.stat.mode)
            case Symlink(target=target):
                path.symlink_to(os.fsdecode(target))
            case other:
                raise AssertionError(other)
    where.chmod(tree.stat.mode)
    return where


def flat(tree: Directory, base: str = "") -> dict[str, tuple[int, object]]:
    """Path → (mode, content), without owners: the tests need not be root."""
    found: dict[str, tuple[int, object]] = {}
    for raw, node in tree.entries.items():
        path = base + os.fsdecode(raw)
        if isinstance(node, Directory):
            found[path] = (node.stat.mode, "folder")
            found |= flat(node, path + "/")
        else:
            found[path] = (node.stat.mode, node.content)
    return found


_leaf = st.one_of(
    st.builds(
        file,
        st.sampled_from([b"", b"1", b"2", b"x" * 100]),
        mode=st.sampled_from([0o644, 0o600]),
    ),
    st.builds(link, st.sampled_from(["a", "/etc/passwd", "b/c", "..", "missing"])),
)
_tree = st.recursive(
    st.builds(Directory, st.builds(Stat, mode=st.just(0o755)), st.just({})),
    lambda below: st.builds(
        Directory,
        st.builds(Stat, mode=st.sampled_from([0o755, 0o700])),
        st.dictionaries(st.sampled_from([n.encode() for n in NAMES]), st.one_of(_leaf, below)),
    ),
    max_leaves=12,
)


def model(
    pristine: dict[str, tuple[int, object]],
    current: dict[str, tuple[int, object]],
    new: dict[str, tuple[int, object]],
) -> dict[str, tuple[int, object]] | None:
    """The merge in the plainest words, over flat trees; None when there is a conflict."""
    merged = dict(new)
    changed = [path for path in current if pristine.get(path) != current[path]]
    needed = {
        "/".join(path.split("/")[:count])
        for path in changed
        for count in range(1, path.count("/") + 2)
    }
    for path in needed:
        is_folder = current[path][1] == "folder"
        if path in new and is_folder != (new[path][1] == "folder"):
            return None
        if path in changed or path not in new:
            merged[path] = current[path]
    for path in pristine:
        if path in current:
            continue
        parent = path.rpartition("/")[0]
        # Below something that isn't a folder any more, here or there, there is nothing to remove.
        if parent and (parent not in current or current[parent][1] != "folder"):
            continue
        if parent and merged.get(parent, (0, ""))[1] != "folder":
            continue
        merged = {k: v for k, v in merged.items() if k != path and not k.startswith(path + "/")}
    return merged


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pristine=_tree, current=_tree, new=_tree)
def test_merging_is_what_the_model_says_and_merging_again_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    pristine: Directory,
    current: Directory,
    new: Directory,
) -> None:
    top = tmp_path_factory.mktemp("etc")
    write(pristine, top / "pristine")
    write(current, top / "current")
    write(new, top / "new")
    was, here = read_live(top / "pristine"), read_live(top / "current")
    plan = plan_merge(was, here, read_live(top / "new"))
    expected = model(flat(was), flat(here), flat(read_live(top / "new")))
    if expected is None:
        assert plan.conflicts
        before = flat(read_live(top / "new"))
        with pytest.raises(BootcError, match="Merge conflicts"):
            apply_merge(plan, top / "current", top / "new")
        assert flat(read_live(top / "new")) == before
        return
    assert not plan.conflicts
    apply_merge(plan, top / "current", top / "new")
    merged = read_live(top / "new")
    assert flat(merged) == expected
    again = plan_merge(was, here, merged)
    assert (again.conflicts, again.recreated) == ((), ())
    apply_merge(again, top / "current", top / "new")
    assert flat(read_live(top / "new")) == expected
    assert flat(read_live(top / "current")) == flat(here)


@settings(max_examples=100)
@given(pristine=_tree, current=_tree)
def test_a_merge_into_the_pristine_tree_leaves_no_difference(
    tmp_path_factory: pytest.TempPathFactory, pristine: Directory, current: Directory
) -> None:
    top = tmp_path_factory.mktemp("etc")
    write(pristine, top / "pristine")
    write(pristine, top / "new")
    write(current, top / "current")
    was, here = read_live(top / "pristine"), read_live(top / "current")
    plan = plan_merge(was, here, was)
    if plan.conflicts:
        return
    apply_merge(plan, top / "current", top / "new")
    assert plan_merge(here, read_live(top / "new")).is_empty


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pristine=_tree, current=_tree, new=_tree, number=st.integers(0, 25))
def test_a_merge_that_was_cut_is_finished_by_the_next_one(
    tmp_path_factory: pytest.TempPathFactory,
    pristine: Directory,
    current: Directory,
    new: Directory,
    number: int,
) -> None:
    top = tmp_path_factory.mktemp("etc")
    write(pristine, top / "pristine")
    write(current, top / "current")
    write(new, top / "new")
    was, here = read_live(top / "pristine"), read_live(top / "current")
    before = flat(read_live(top / "new"))
    plan = plan_merge(was, here, read_live(top / "new"))
    if plan.conflicts:
        return
    run_until_cut(lambda: apply_merge(plan, top / "current", top / "new"), number)
    again = plan_merge(was, here, read_live(top / "new"))
    assert again.conflicts == ()
    apply_merge(again, top / "current", top / "new")
    assert flat(read_live(top / "new")) == model(flat(was), flat(here), before)


def _three(
    tmp_path: Path, pristine: Directory, current: Directory, new: Directory
) -> tuple[MergePlan, Path, Path]:
    write(pristine, tmp_path / "pristine")
    here, target = write(current, tmp_path / "current"), write(new, tmp_path / "new")
    return (
        plan_merge(read_live(tmp_path / "pristine"), read_live(here), read_live(target)),
        (here),
        target,
    )


def test_no_symbolic_link_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("safe")
    pristine = folder(gone=folder(f=file()), l=file())
    current = folder(l=link(str(outside / "f")), d=folder(f=file(b"mine")))
    new = folder(gone=link(str(outside)), l=file(b"1"))
    plan, here, target = _three(tmp_path, pristine, current, new)
    # As if it had been swapped between the plan and its execution.
    (target / "d").symlink_to(outside)
    with pytest.raises(BootcError, match="cannot merge /etc"):
        apply_merge(plan, here, target)
    (target / "d").unlink()
    apply_merge(plan, here, target)
    assert [path.name for path in outside.iterdir()] == ["f"]
    assert (outside / "f").read_text() == "safe"
    assert os.readlink(target / "l") == str(outside / "f")
    assert not (target / "gone").is_symlink()
    assert (target / "d/f").read_bytes() == b"mine"


def test_hard_links_stay_hard_links_also_when_merged_again(tmp_path: Path) -> None:
    plan, here, target = _three(tmp_path, folder(), folder(a=file(b"1"), d=folder()), folder())
    os.link(here / "a", here / "d" / "b")
    plan = plan_merge(folder(), read_live(here), folder())
    for _ in range(2):
        apply_merge(plan, here, target)
        assert os.stat(target / "a").st_ino == os.stat(target / "d/b").st_ino
        assert sorted(os.listdir(target)) == ["a", "d"]
    assert os.stat(target / "a").st_ino != os.stat(here / "a").st_ino


def test_what_an_interrupted_merge_left_is_removed(tmp_path: Path) -> None:
    plan, here, target = _three(tmp_path, folder(), folder(a=file(b"1")), folder())
    (target / etc_merge.TEMPORARY).write_text("half")
    apply_merge(plan, here, target)
    assert os.listdir(target) == ["a"]


def test_names_that_are_no_text_and_modes_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n")
    current = folder(s=file(b"1", mode=0o4755))
    current.entries[os.fsencode(name)] = file(b"2", mode=0o000)
    plan, here, target = _three(tmp_path, folder(), current, folder())
    assert set(plan.added) == {name, "s"}
    apply_merge(plan, here, target)
    assert stat.S_IMODE(os.stat(target / "s").st_mode) == 0o4755
    assert stat.S_IMODE(os.stat(target / name).st_mode) == 0


def test_what_went_away_meanwhile_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan, here, target = _three(tmp_path, folder(), folder(a=file(), b=file()), folder())
    (here / "a").unlink()
    apply_merge(plan, here, target)
    assert os.listdir(target) == ["b"]
    assert "/etc/a went away" in caplog.text


def test_a_fifo_in_a_live_folder_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert read_live(tmp_path).entries == {}


def test_a_folder_that_is_missing_and_one_that_is_too_deep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BootcError, match="cannot read the folder"):
        read_live(tmp_path / "missing")
    deep = tmp_path
    for _ in range(210):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(BootcError, match="folders deep"):
        read_live(tmp_path)
