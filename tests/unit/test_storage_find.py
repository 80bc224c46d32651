# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Finding stores and images as podman does. The cases of files were measured with podman 4.3, 5.4
(`classic`) and 5.8 (`drop-ins`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootc import process
from bootc.errors import BootcError, FormatError
from bootc.storage.options import Rules, StorageOptions, find_options
from bootc.storage.records import ImageRecord, big_data_name, read_images, read_layers
from bootc.storage.reference import StorageReference, choose_image, parse_reference
from bootc.storage.store import Store, Unsupported, open_stores

BOTH = (Rules.CLASSIC, Rules.DROP_INS)


class Machine:
    """The files of a machine and a user's home."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.home = top / "home"
        self.home.mkdir()
        self.environ = {"HOME": str(self.home)}

    def put(self, name: str, **fields: object) -> Path:
        """A storage.conf with these fields of [storage]; `options_X` is X in [storage.options]."""
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {key: value for key, value in fields.items() if not key.startswith("options_")}
        lines = ["[storage]", *(f"{key} = {value!r}" for key, value in plain.items())]
        lines.append("[storage.options]")
        lines += [
            f"{key.removeprefix('options_')} = {value!r}"
            for key, value in fields.items()
            if key not in plain
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    def find(self, rules: Rules, uid: int = 0) -> StorageOptions:
        return find_options(self.environ, uid=uid, root=str(self.top), rules=rules)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("rules", BOTH)
def test_without_files_there_are_defaults(machine: Machine, rules: Rules) -> None:
    found = machine.find(rules)
    assert (found.graphroot, found.runroot) == (
        "/var/lib/containers/storage",
        "/run/containers/storage",
    )
    user = machine.find(rules, 1500)
    assert user.graphroot == f"{machine.home}/.local/share/containers/storage"
    assert user.runroot == "/tmp/storage-run-1500/containers"
    runtime = machine.top / "runtime"
    runtime.mkdir()
    machine.environ |= {"XDG_DATA_HOME": "/data", "XDG_RUNTIME_DIR": str(runtime)}
    user = machine.find(rules, 1500)
    assert (user.graphroot, user.runroot) == ("/data/containers/storage", f"{runtime}/containers")


@pytest.mark.parametrize("rules", BOTH)
def test_one_main_file_counts(machine: Machine, rules: Rules) -> None:
    machine.put("usr/share/containers/storage.conf", graphroot="/vendor", driver="overlay2")
    found = machine.find(rules)
    assert (found.graphroot, found.driver) == ("/vendor", "overlay")
    machine.put("etc/containers/storage.conf", runroot="/run/admin")
    found = machine.find(rules)
    assert (found.graphroot, found.runroot, found.driver) == (
        "/var/lib/containers/storage",
        "/run/admin",
        "",
    )
    machine.put("xdg/containers/storage.conf", graphroot="/xdg")
    machine.environ["XDG_CONFIG_HOME"] = str(machine.top / "xdg")
    assert machine.find(rules).graphroot == "/xdg"
    machine.environ["CONTAINERS_STORAGE_CONF"] = str(machine.put("mine.conf", graphroot="/mine"))
    found = machine.find(rules)
    assert (found.graphroot, found.files) == ("/mine", (str(machine.top / "mine.conf"),))


def test_roots_own_home_counts_since_drop_ins(machine: Machine) -> None:
    machine.put("home/.config/containers/storage.conf", graphroot="/own")
    assert machine.find(Rules.DROP_INS).graphroot == "/own"
    assert machine.find(Rules.CLASSIC).graphroot == "/var/lib/containers/storage"
    assert machine.find(Rules.CLASSIC, 1500).graphroot == "/own"


@pytest.mark.parametrize("rules", BOTH)
def test_paths_have_variables(machine: Machine, rules: Rules) -> None:
    machine.environ["X"] = "abc"
    machine.put("home/.config/containers/storage.conf", graphroot="$HOME/${X}g-$UID$NONE")
    assert machine.find(rules, 1500).graphroot == f"{machine.home}/abcg-1500"


@pytest.mark.parametrize("rules", BOTH)
def test_a_rootless_storage_path_is_a_default(machine: Machine, rules: Rules) -> None:
    path = machine.put("home/.config/containers/storage.conf", rootless_storage_path="$HOME/p")
    assert machine.find(rules, 1500).graphroot == f"{machine.home}/p"
    assert machine.find(Rules.DROP_INS).graphroot == "/var/lib/containers/storage"
    path.write_text(path.read_text().replace("[storage]", "[storage]\ngraphroot='/g'"))
    assert machine.find(rules, 1500).graphroot == "/g"


def test_systems_folders_are_users_too_since_drop_ins(machine: Machine) -> None:
    machine.put(
        "etc/containers/storage.conf", graphroot="/sys", runroot="/run/sys", driver="overlay"
    )
    found = machine.find(Rules.DROP_INS, 1500)
    assert (found.graphroot, found.runroot) == ("/sys", "/run/sys")
    found = machine.find(Rules.CLASSIC, 1500)
    assert found.graphroot == f"{machine.home}/.local/share/containers/storage"
    assert found.driver == "overlay"
    machine.put("etc/containers/storage.conf", graphroot="/sys", rootless_storage_path="/rl/$UID")
    assert machine.find(Rules.CLASSIC, 1500).graphroot == "/rl/1500"


def test_drop_ins_are_ordered_by_name_and_masked_by_place(machine: Machine) -> None:
    machine.put("etc/containers/storage.conf", graphroot="/main")
    machine.put("usr/share/containers/storage.conf.d/99-v.conf", graphroot="/vendor")
    assert machine.find(Rules.CLASSIC).graphroot == "/main"
    machine.put("home/.config/containers/storage.conf.d/33.conf", graphroot="/user", runroot="/r")
    found = machine.find(Rules.DROP_INS)
    assert (found.graphroot, found.runroot) == ("/vendor", "/r")
    machine.put("etc/containers/storage.conf.d/99-v.conf")
    assert machine.find(Rules.DROP_INS).graphroot == "/user"
    machine.put("etc/containers/storage.conf.d/99-ignored", graphroot="/no")
    (machine.top / "etc/containers/storage.conf.d/99-folder.conf").mkdir()
    machine.put("etc/containers/storage.rootful.conf.d/50.conf", graphroot="/rootful")
    machine.put("etc/containers/storage.rootless.conf.d/50.conf", graphroot="/rootless")
    machine.put("etc/containers/storage.rootless.conf.d/1500/60.conf", graphroot="/1500")
    assert machine.find(Rules.DROP_INS).graphroot == "/rootful"
    assert machine.find(Rules.DROP_INS, 1500).graphroot == "/1500"
    assert machine.find(Rules.DROP_INS, 1501).graphroot == "/rootless"
    machine.environ["CONTAINERS_STORAGE_CONF_OVERRIDE"] = str(
        machine.put("over.conf", graphroot="/over")
    )
    assert machine.find(Rules.DROP_INS).graphroot == "/over"
    machine.environ["CONTAINERS_STORAGE_CONF"] = str(machine.put("one.conf", runroot="/one"))
    found = machine.find(Rules.DROP_INS)
    assert (found.graphroot, found.runroot) == ("/over", "/one")


def test_additional_stores(machine: Machine) -> None:
    machine.put(
        "etc/containers/storage.conf",
        graphroot="/g",
        imagestore="/i",
        options_additionalimagestores=["/a", "/b/"],
    )
    drop_in = machine.put(
        "etc/containers/storage.conf.d/1.conf", options_additionalimagestores=["/c"]
    )
    assert machine.find(Rules.CLASSIC).roots == ("/i", "/g", "/a", "/b")
    assert machine.find(Rules.DROP_INS).roots == ("/i", "/g", "/c")
    drop_in.write_text('[storage.options]\nadditionalimagestores = ["/c", {append=true}]\n')
    assert machine.find(Rules.DROP_INS).additional == ("/a", "/b", "/c")
    machine.environ["STORAGE_OPTS"] = "overlay.imagestore=/d,mountopt=nodev,additionalimagestore=/e"
    machine.environ["STORAGE_DRIVER"] = "vfs"
    found = machine.find(Rules.DROP_INS)
    assert found.additional == ("/a", "/b", "/c", "/d", "/e")
    assert found.driver == "vfs"


def test_podman_is_asked_only_if_it_matters(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    podman = programs / "podman"
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def find() -> str:
        return find_options(machine.environ, uid=0, root=str(machine.top)).graphroot

    podman.write_text("#!/bin/sh\ntouch $0.asked\necho podman version 5.4.2\n")
    podman.chmod(0o755)
    machine.put("etc/containers/storage.conf", graphroot="/main")
    assert find() == "/main"
    assert not (programs / "podman.asked").exists()
    machine.put("etc/containers/storage.conf.d/1.conf", graphroot="/drop-in")
    assert find() == "/main"
    assert (programs / "podman.asked").exists()
    podman.write_text("#!/bin/sh\necho podman version 5.8.6\n")
    assert find() == "/drop-in"
    if process.find_program("podman") == str(podman):
        podman.unlink()
        monkeypatch.setenv("PATH", str(programs))
    assert process.find_program("podman") is not None or find() == "/drop-in"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[storage\n", "is not TOML"),
        ("[storage]\ngraphroot = 5\n", r"\.storage\.graphroot: is int, expected a string"),
        ("storage = 1\n", r"\.storage: is no table"),
        ('[storage]\ngraphroot = "relative"\n', "not absolute"),
        ('[storage.options]\nadditionalimagestores = ["x"]\n', "no absolute path"),
        ('[storage.options]\nadditionalimagestores = "/x"\n', "expected an array of strings"),
        ("a = " + "[" * 3000, "is not TOML"),
        ("#" * (1 << 20) + "\n", "too large"),
    ],
)
def test_bad_files_are_one_line(machine: Machine, text: str, problem: str) -> None:
    path = machine.put("bad.conf")
    path.write_text(text)
    machine.environ["CONTAINERS_STORAGE_CONF"] = str(path)
    with pytest.raises(BootcError, match=problem) as caught:
        machine.find(Rules.DROP_INS)
    assert "\n" not in str(caught.value)


def test_a_missing_file_that_was_named(machine: Machine) -> None:
    machine.environ["CONTAINERS_STORAGE_CONF"] = "/none/storage.conf"
    for rules in BOTH:
        with pytest.raises(BootcError, match=r"cannot read /none/storage\.conf"):
            machine.find(rules)


# -- Names


def record(number: int, *names: str, digest: str | None = None) -> ImageRecord:
    data = () if digest is None else (f"manifest-{digest}",)
    return ImageRecord(
        id=f"{number:x}".ljust(64, "0"), digest=digest, names=names, layer=None, data=data
    )


D1, D2 = (f"sha256:{digit * 64}" for digit in "12")
ONE = record(0xABC1, "localhost/bootc:latest", "localhost/other:1", digest=D1)
TWO = record(0xABC2, "quay.io/fedora/bootc:42", digest=D2)
THREE = record(0xBE0, "docker.io/library/alpine:3", "docker.io/me/tool:latest")
FOUR = record(0xF00, "registry:5000/x/alpine:3")
STORES = ((ONE, TWO), (THREE, FOUR))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("localhost/bootc:latest", ONE),
        ("localhost/bootc", ONE),
        ("bootc", ONE),
        ("bootc:42", TWO),
        ("fedora/bootc:42", TWO),
        ("other:1", ONE),
        (ONE.id, ONE),
        (f"sha256:{TWO.id}", TWO),
        ("abc1", ONE),
        ("be0", THREE),
        ("alpine:3", THREE),
        ("me/tool", THREE),
        ("registry:5000/x/alpine:3", FOUR),
        (f"localhost/bootc@{D1}", ONE),
        (f"quay.io/fedora/bootc@{D2}", TWO),
        (f"localhost/bootc@{ONE.id}", ONE),
        ("bootc:42@abc2", TWO),
        (f"@{THREE.id}", THREE),
    ],
)
def test_names(name: str, found: ImageRecord) -> None:
    assert choose_image(name, STORES, "here")[1] is found


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("abc", r"abc may mean 2 images: localhost/bootc:latest, localhost/other:1; quay"),
        ("ab", "there is no image ab in here"),
        ("otc:latest", "there is no image"),
        ("bootc:43", "there is no image"),
        (f"localhost/bootc@{D2}", "there is no image"),
        ("localhost/bootc@zz", "neither a digest nor an id"),
        ("localhost/bootc@abc2", "there is no image"),
    ],
)
def test_names_that_mean_none_or_several(name: str, problem: str) -> None:
    with pytest.raises(BootcError, match=problem) as caught:
        choose_image(name, STORES, "here")
    assert caught.value.hint


def test_the_first_store_wins_within_a_rank() -> None:
    again = record(0xFFF, *ONE.names)
    assert choose_image("bootc", ((again,), (ONE,)), "here") == (0, again)
    suffix = record(0xEEE, "quay.io/x/localhost/other:1")
    assert choose_image("localhost/other:1", ((suffix,), (ONE,)), "here") == (1, ONE)


def test_references() -> None:
    assert parse_reference("quay.io/x/y:1") == StorageReference(name="quay.io/x/y:1")
    full = parse_reference("[overlay@/g+/r:overlay.imagestore=/a,additionalimagestore=/b]x:1")
    assert full == StorageReference(
        name="x:1", driver="overlay", graphroot="/g", additional=("/a", "/b")
    )
    assert parse_reference("[/g]x") == StorageReference(name="x", graphroot="/g")
    for bad in ("", "[/g", "[]x", "[/g]", "[overlay]x", "[vfs@g]x"):
        with pytest.raises(BootcError):
            parse_reference(bad)


# -- Stores and documents


def test_drivers(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(BootcError, match=f"no container storage in {root}") as caught:
        open_stores([root])
    assert not isinstance(caught.value, Unsupported)
    (tmp_path / "vfs-layers").mkdir()
    (tmp_path / "vfs-layers/layers.json").write_text("[]")
    for driver in ("", "vfs"):
        with pytest.raises(Unsupported, match="uses the driver vfs, not overlay"):
            open_stores([root], driver)
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay-layers").mkdir()
    assert open_stores([root, "/none"], "overlay") == (Store(root=root),)
    with pytest.raises(Unsupported):
        open_stores([root], "vfs")
    # A name that nothing is stored under is overruled by what is: podman keeps its first driver.
    assert open_stores([root], "btrfs") == (Store(root=root),)


def test_big_data_names() -> None:
    assert big_data_name("manifest") == "manifest"
    assert big_data_name("a.1") == "a.1"
    assert big_data_name("manifest-x") == "=bWFuaWZlc3QteA=="
    assert big_data_name("sha256:ab") == "=c2hhMjU2OmFi"


ID = "a" * 64


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("{}", "is dict, expected an array"),
        ("[1]", r"\[0\]: expected an object"),
        ("[{}]", r"\[0\]\.id: is missing"),
        ('[{"id": "../../etc"}]', r"'\.\./\.\./etc' is no id"),
        (f'[{{"id": "{ID}", "names": [1]}}]', "expected an array of strings"),
        (f'[{{"id": "{ID}", "layer": "/"}}]', "'/' is no id"),
        (f'[{{"id": "{ID}"}}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_damaged_images_json(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "images.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=problem) as caught:
        read_images(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_layers_json(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    assert read_layers(str(path)) == {}
    path.write_text(f'[{{"id": "{ID}", "diff-digest": "sha256:x"}}]')
    with pytest.raises(FormatError, match="is no digest"):
        read_layers(str(path))
    path.write_text(f'[{{"id": "{ID}", "parent": "x/y"}}]')
    with pytest.raises(FormatError, match="is no id"):
        read_layers(str(path))
    path.write_text(f'[{{"id": "{ID}", "flags": {{"incomplete": true}}}}]')
    assert read_layers(str(path))[ID].incomplete
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(BootcError, match="cannot read"):
        read_layers(str(path))
