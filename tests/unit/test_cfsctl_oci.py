# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl oci`: what it prints, and what it leaves behind."""

from __future__ import annotations

import json
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.cli.main import run_program
from bootc.composefs.splitstream import read_splitstream
from tests.ocibuild import END, folder, header, member, sha256, system_tar, write_blob, write_layout

KERNEL = (
    folder(b"./")
    + b"".join(folder(name) for name in (b"usr", b"boot", b"sysroot", b"usr/lib"))
    + folder(b"usr/lib/modules")
    + folder(b"usr/lib/modules/6.1")
    + member(b"usr/lib/modules/6.1/vmlinuz", b"K" * 200)
    + member(b"usr/lib/modules/6.1/initramfs.img", b"I" * 300)
)


@dataclass
class Cfsctl:
    """Runs cfsctl on one repository, in this process."""

    repo: Path
    capture: pytest.CaptureFixture[str]

    def run(self, *args: str) -> tuple[int, str, str]:
        status = run_program(["cfsctl", "--repo", str(self.repo), *args])
        out, err = self.capture.readouterr()
        return status, out, err

    def __call__(self, *args: str) -> str:
        status, out, err = self.run(*args)
        assert status == 0, err
        return out

    def fails(self, *args: str) -> str:
        status, out, err = self.run(*args)
        assert status == 1
        assert out == ""
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        return line


@pytest.fixture
def cfsctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cfsctl:
    made = Cfsctl(tmp_path / "repo", capsys)
    made("init", "--insecure", "--algorithm=fsverity-sha256-12")
    return made


def pulled(cfsctl: Cfsctl, reference: str, *args: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in cfsctl("oci", "pull", reference, *args).splitlines():
        key, _, value = line.partition(": " if line.startswith("Boot") else " ")
        found[key] = value.lstrip()
    return found


def test_pull_says_what_it_did(cfsctl: Cfsctl, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar(), system_tar()])
    said = pulled(cfsctl, reference)
    assert list(said) == ["manifest", "config", "verity", "tagged", "objects"]
    assert said["tagged"] == reference
    # usr/bin/large, boot/vmlinuz, run/lock; the second layer is the first one.
    assert said["objects"].startswith("3 new + 0 already present objects; 11.07 KiB stored, ")
    again = pulled(cfsctl, reference, "name", "--bootable")
    assert again["objects"] == "0 new + 0 already present objects; 0 B stored, 0 B inlined"
    assert again["tagged"] == "name"
    assert again["Boot image"] == cfsctl("oci", "compute-id", "--bootable", "name").strip()


def test_nothing_is_tagged_when_no_image_can_be_made(cfsctl: Cfsctl, tmp_path: Path) -> None:
    orphan = folder(b"usr") + member(b"gone/file", b"x") + END
    said = cfsctl.fails("oci", "pull", write_layout(tmp_path / "oci", [orphan]), "name")
    assert "/gone/file" in said
    assert "not in the image" in said
    assert json.loads(cfsctl("oci", "images", "--json")) == {"images": []}


def test_images_and_inspect(cfsctl: Cfsctl, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar()])
    said = pulled(cfsctl, reference, "a/b:1", "--bootable")
    (row,) = json.loads(cfsctl("oci", "images", "--json"))["images"]
    assert row == {
        "name": "a/b:1",
        "manifest_digest": said["manifest"],
        "is_container": True,
        "architecture": "amd64",
        "os": "linux",
        "created": None,
        "layer_count": 1,
        "referrer_count": 0,
    }
    head, line = cfsctl("oci", "images").splitlines()
    assert head.split() == ["NAME", "DIGEST", "ARCH", "LAYERS", "REFS"]
    assert line.split() == ["a/b:1", said["manifest"][7:19], "amd64", "1", "0"]
    found = json.loads(cfsctl("oci", "inspect", "a/b:1"))
    assert sha256(found["manifest"].encode()) == said["manifest"]
    assert sha256(found["config"].encode()) == said["config"]
    assert found["referrers"] == []
    assert found["composefs_boot_erofs"] == said["Boot image"]
    assert found["composefs_erofs"] == cfsctl("oci", "compute-id", "a/b:1").strip()
    by_digest = f"@{said['manifest']}"
    assert json.loads(cfsctl("oci", "inspect", by_digest)) == found
    assert cfsctl("oci", "inspect", "--config", by_digest) == found["config"] + "\n"
    assert cfsctl("oci", "inspect", "--manifest", "a/b:1") == found["manifest"] + "\n"


def test_tag_and_untag(cfsctl: Cfsctl, tmp_path: Path) -> None:
    digest = pulled(cfsctl, write_layout(tmp_path / "oci", [system_tar()]), "one")["manifest"]
    assert cfsctl("oci", "tag", digest, "two/x") == f"Tagged {digest} as two/x\n"
    names = [row["name"] for row in json.loads(cfsctl("oci", "images", "--json"))["images"]]
    assert names == ["one", "two/x"]
    assert cfsctl("oci", "untag", "one") == "Removed tag one\n"
    assert "no tag one" in cfsctl.fails("oci", "untag", "one")
    assert "is no digest" in cfsctl.fails("oci", "tag", "sha256:12", "x")
    assert "no stream" in cfsctl.fails("oci", "tag", f"sha256:{'0' * 64}", "x")
    assert "tag name" in cfsctl.fails("oci", "tag", digest, "@x")


def test_a_tree_is_named_by_tag_or_by_digest(cfsctl: Cfsctl, tmp_path: Path) -> None:
    said = pulled(cfsctl, write_layout(tmp_path / "oci", [system_tar()]), "t")
    expected = cfsctl("oci", "compute-id", "t")
    dump = cfsctl("oci", "dump", "t")
    assert dump.splitlines()[0].startswith("/ 0 40755 ")
    config, manifest = f"@{said['config']}", f"@{said['manifest']}"
    for name in (config, manifest):
        assert cfsctl("oci", "compute-id", name) == expected
        assert cfsctl("oci", "dump", name) == dump
    assert cfsctl("oci", "compute-id", manifest, said["verity"]) == expected
    assert "verity digest" in cfsctl.fails("oci", "compute-id", config, "00" * 32)
    boot = cfsctl("oci", "dump", "--bootable", "t")
    assert "/boot/vmlinuz" in dump
    assert "/boot/vmlinuz" not in boot


def test_what_is_asked_for_by_digest_is_verified(cfsctl: Cfsctl, tmp_path: Path) -> None:
    said = pulled(cfsctl, write_layout(tmp_path / "oci", [system_tar()]), "t")
    (name,) = [
        path
        for path in (tmp_path / "repo/objects").rglob("*")
        if path.is_file() and path.read_bytes() == b"k" * 1000
    ]
    name.write_bytes(b"K" * 1000)
    cfsctl("oci", "compute-id", "t")
    assert "has the digest" in cfsctl.fails("oci", "compute-id", f"@{said['config']}")
    assert "has the digest" in cfsctl.fails("oci", "dump", f"@{said['manifest']}")


def test_an_expected_digest_is_searched_for(cfsctl: Cfsctl, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar()])
    pulled(cfsctl, reference, "t")
    wanted = cfsctl("--erofs-version=2", "oci", "compute-id", "--bootable", "t").strip()
    assert wanted != cfsctl("oci", "compute-id", "--bootable", "t").strip()
    said = pulled(cfsctl, reference, "t", "--bootable", "--expected-digest", wanted)
    assert said["Boot image"] == wanted
    assert "has the digest" in cfsctl.fails(
        "oci", "pull", reference, "u", "--bootable", "--expected-digest", "00" * 32
    )
    assert "bootable" in cfsctl.fails("oci", "pull", reference, "--expected-digest", "00" * 32)
    assert "u" not in cfsctl("oci", "images").split()


def test_a_repository_of_two_formats_gets_images_of_both(cfsctl: Cfsctl, tmp_path: Path) -> None:
    meta = cfsctl.repo / "meta.json"
    value = json.loads(meta.read_text())
    value["erofs_formats"]["extra"] = [2]
    meta.write_text(json.dumps(value))
    said = pulled(cfsctl, write_layout(tmp_path / "oci", [system_tar()]), "t", "--bootable")
    wanted = {
        cfsctl(f"--erofs-version={version}", "oci", "compute-id", "t", *options).strip()
        for version in (1, 2)
        for options in ((), ("--bootable",))
    }
    links = {path.name for path in (cfsctl.repo / "images").iterdir() if path.is_symlink()}
    assert links == wanted
    assert len(wanted) == 4
    assert said["Boot image"] == cfsctl("oci", "compute-id", "--bootable", "t").strip()
    # The config keeps all of them alive.
    cfsctl("gc")
    assert {path.name for path in (cfsctl.repo / "images").iterdir()} >= wanted


def test_an_artifact_is_kept_but_has_no_tree(cfsctl: Cfsctl, tmp_path: Path) -> None:
    layout = tmp_path / "art"
    layers = [
        {"mediaType": "text/plain", **write_blob(layout, data)} for data in (b"tiny", b"b" * 99)
    ]
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", **write_blob(layout, b"{}")}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.io.github.containers.oci-delta.v1",
        "config": empty,
        "layers": layers,
    }
    entry = {
        "mediaType": manifest["mediaType"],
        **write_blob(layout, json.dumps(manifest).encode()),
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    said = pulled(cfsctl, f"oci:{layout}", "a")
    assert said["objects"] == "2 new + 0 already present objects; 103 B stored, 0 B inlined"
    (row,) = json.loads(cfsctl("oci", "images", "--json"))["images"]
    assert (row["is_container"], row["architecture"], row["layer_count"]) == (False, "", 2)
    assert "artifact" in cfsctl("oci", "images")
    assert "is an artifact" in cfsctl.fails("oci", "compute-id", "a")
    assert "cannot be booted" in cfsctl.fails("oci", "pull", f"oci:{layout}", "b", "--bootable")
    streams = os.listdir(cfsctl.repo / "streams")
    assert f"oci-layer-{layers[0]['digest']}" in streams
    assert cfsctl("oci", "fsck").endswith("oci images: 1/1 ok\n")
    # The blob is verified, too.
    bad = layout / "blobs/sha256" / str(layers[1]["digest"])[7:]
    bad.write_bytes(b"c" * 99)
    for link in (cfsctl.repo / "streams").glob("oci-layer-*"):
        link.unlink()
    assert "has the digest" in cfsctl.fails("oci", "pull", f"oci:{layout}", "c")


def test_layers_in_and_out(cfsctl: Cfsctl, tmp_path: Path) -> None:
    tar = (
        folder(b"./")
        + folder(b"./usr")
        + member(b"./usr/a b", b"x" * 70)
        + member(b"usr/i", b"in\nline")
        + header(b"usr/h", 0, b"1", link=b"./usr/i")
        + header(b"usr/.wh.gone")
        + END
    )
    (tmp_path / "tar").write_bytes(tar)
    digest = sha256(tar)
    program = [sys.executable, "-m", "bootc.composefs.cli.main", "--repo", str(cfsctl.repo), "oci"]
    made = process.run([*program, "import-layer", digest, "name"], stdin=tar)
    found = json.loads(cfsctl("oci", "layer", "--json", digest))
    assert found == {
        "diffId": digest,
        "verity": made.stdout.strip().removeprefix("sha256:"),
        "size": len(tar),
        "entryCount": 6,
        "splitstream": {
            "externalObjects": 1,
            "externalSize": 70,
            "inlineSize": len(tar) - 70,
        },
    }
    link = os.readlink(cfsctl.repo / "streams/refs/name")
    assert link == f"../oci-layer-{digest}"
    lines = cfsctl("oci", "layer", "--dumpfile", digest).splitlines()
    assert [line.split()[0] for line in lines] == [
        "/",
        "/usr",
        r"/usr/a\x20b",
        "/usr/i",
        "/usr/h",
        "/usr/.wh.gone",
    ]
    assert lines[4] == "/usr/h 0 @120000 - - - - 0.0 /usr/i - -"
    with (
        open(tmp_path / "out", "wb") as out,
        process.running([*program, "layer", digest], stdout=out) as child,
    ):
        assert child.wait(60) == 0
    assert (tmp_path / "out").read_bytes() == tar
    other = f"sha256:{'0' * 64}"
    failed = process.run([*program, "import-layer", other], stdin=tar, check=False)
    assert failed.status == 1
    assert "has the digest" in failed.stderr
    assert "no layer" in cfsctl.fails("oci", "layer", "--json", other)


def test_prepare_boot_of_a_kernel(cfsctl: Cfsctl, tmp_path: Path) -> None:
    pulled(cfsctl, write_layout(tmp_path / "oci", [KERNEL + END]), "k")
    image = cfsctl("oci", "compute-id", "--bootable", "k").strip()
    boot = tmp_path / "boot"
    boot.mkdir()
    args = ("oci", "prepare-boot", "k", "--bootdir", str(boot))
    assert cfsctl(*args, "--entry-id", "ID", "--cmdline=quiet", "--cmdline=root=x") == ""
    assert (boot / "loader/entries/ID.conf").read_text() == (
        "# File created by composefs\ntitle todoOS\nversion 0-todo\n"
        "linux /ID/vmlinuz\ninitrd /ID/initramfs.img\n"
        f"options composefs.digest=?v1-sha256-12:{image} quiet root=x\n"
    )
    assert (boot / "ID/vmlinuz").read_bytes() == b"K" * 200
    assert (boot / "ID/initramfs.img").read_bytes() == b"I" * 300
    state = tmp_path / "state/deploy" / image
    assert sorted(path.name for path in state.iterdir()) == ["etc", "var"]
    assert sorted(path.name for path in (state / "etc").iterdir()) == ["upper", "work"]
    assert "no entry id" in cfsctl.fails(*args, "--entry-id", "a/b")
    assert "no directory" in cfsctl.fails("oci", "prepare-boot", "k", "--bootdir", str(boot / "x"))


def test_prepare_boot_keeps_the_lines_of_an_entry(cfsctl: Cfsctl, tmp_path: Path) -> None:
    entry = (
        b"# c\ntitle\tA\nlinux /boot/d/vmlinuz\ninitrd\t/boot/d/initrd\n"
        b"options  root=x quiet\noptions two\n\n"
    )
    tar = (
        KERNEL
        + b"".join(folder(name) for name in (b"boot/loader", b"boot/loader/entries", b"boot/d"))
        + member(b"boot/loader/entries/a.conf", entry)
        + member(b"boot/d/vmlinuz", b"L" * 100)
        + member(b"boot/d/initrd", b"J")
        + END
    )
    pulled(cfsctl, write_layout(tmp_path / "oci", [tar]), "k")
    image = cfsctl("oci", "compute-id", "--bootable", "k").strip()
    (tmp_path / "boot").mkdir()
    args = ("oci", "prepare-boot", "k", "--bootdir", str(tmp_path / "boot"))
    cfsctl(*args, "--cmdline=root=y")
    assert (tmp_path / "boot/loader/entries/a.conf").read_bytes() == entry.replace(
        b"root=x quiet", f"root=y quiet composefs.digest=?v1-sha256-12:{image}".encode()
    )
    assert (tmp_path / "boot/boot/d/initrd").read_bytes() == b"J"
    cfsctl(*args, "--entry-id=ID")
    moved = (tmp_path / "boot/loader/entries/ID.conf").read_text()
    assert "linux /ID/vmlinuz\ninitrd\t/ID/initrd\n" in moved
    lost = entry.replace(b"/boot/d/initrd", b"/boot/d/nowhere")
    tar = tar.replace(
        member(b"boot/loader/entries/a.conf", entry), member(b"boot/loader/entries/a.conf", lost)
    )
    pulled(cfsctl, write_layout(tmp_path / "lost", [tar]), "k")
    assert "/boot/d/nowhere is no file of the image" in cfsctl.fails(*args)


def uki(cmdline: bytes) -> bytes:
    section = struct.pack("<8sIIII16x", b".cmdline", len(cmdline), 0x1000, 512, 0x200)
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 0, 0x22)
    return (head + coff + section).ljust(0x200, b"\0") + cmdline.ljust(512, b"\0")


def test_prepare_boot_of_a_unified_kernel_image(cfsctl: Cfsctl, tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    boot.mkdir()
    base = KERNEL + folder(b"boot/EFI") + folder(b"boot/EFI/Linux")
    args = ("oci", "prepare-boot", "k", "--bootdir", str(boot))

    def prepare(name: str, cmdline: str) -> None:
        tar = base + member(b"boot/EFI/Linux/foo.efi", uki(cmdline.encode())) + END
        pulled(cfsctl, write_layout(tmp_path / name, [tar]), "k")

    prepare("none", "quiet")
    assert "no composefs image" in cfsctl.fails(*args)
    prepare("other", f"composefs={'0' * 64}")
    assert "is made for the image 000" in cfsctl.fails(*args)
    image = cfsctl("oci", "compute-id", "--bootable", "k").strip()
    prepare("right", f"ro composefs.digest=v1-sha256-12:{image} quiet")
    assert "cannot be added" in cfsctl.fails(*args, "--cmdline=x")
    assert os.listdir(boot) == []
    cfsctl(*args, "--entry-id=ID")
    assert [path.name for path in boot.rglob("*.efi")] == ["ID.efi"]


def test_prepare_boot_without_anything_to_boot(cfsctl: Cfsctl, tmp_path: Path) -> None:
    pulled(cfsctl, write_layout(tmp_path / "oci", [system_tar()]), "k")
    said = cfsctl.fails("oci", "prepare-boot", "k", "--bootdir", str(tmp_path))
    assert "neither boot entries nor a kernel" in said


def test_prepare_boot_of_a_kernel_without_an_initramfs(cfsctl: Cfsctl, tmp_path: Path) -> None:
    bare = KERNEL[: KERNEL.index(b"usr/lib/modules/6.1/initramfs.img")] + END
    pulled(cfsctl, write_layout(tmp_path / "oci", [bare]), "k")
    said = cfsctl.fails("oci", "prepare-boot", "k", "--bootdir", str(tmp_path))
    assert "no /usr/lib/modules/6.1/initramfs.img" in said
    # An entry of the image's own comes first, and needs no kernel there.
    own = folder(b"boot/loader") + folder(b"boot/loader/entries") + member(b"boot/k", b"K")
    own += member(b"boot/loader/entries/a.conf", b"title x\nlinux /boot/k\n")
    bare = bare.removesuffix(END) + own + END
    pulled(cfsctl, write_layout(tmp_path / "own", [bare]), "k")
    cfsctl("oci", "prepare-boot", "k", "--bootdir", str(tmp_path))
    assert (tmp_path / "boot/k").read_bytes() == b"K"


def test_the_config_refers_to_the_plain_image_first(cfsctl: Cfsctl, tmp_path: Path) -> None:
    said = pulled(cfsctl, write_layout(tmp_path / "oci", [system_tar()]), "t", "--bootable")
    data = (cfsctl.repo / f"streams/oci-config-{said['config']}").read_bytes()
    stream = read_splitstream(data, "config")
    plain = bytes.fromhex(cfsctl("oci", "compute-id", "t"))
    boot = bytes.fromhex(said["Boot image"])
    assert stream.stream_refs[1:] == [plain, boot]
    assert stream.named_refs["composefs.image.v1"] == plain
    assert stream.named_refs["composefs.image.boot.v1"] == boot


def test_fsck_of_images(cfsctl: Cfsctl, tmp_path: Path) -> None:
    pulled(cfsctl, write_layout(tmp_path / "oci", [system_tar()]), "t")
    assert cfsctl("oci", "fsck").splitlines()[-2:] == ["status: ok", "oci images: 1/1 ok"]
    assert json.loads(cfsctl("oci", "fsck", "--json", "t"))["ok"] is True
    for path in (cfsctl.repo / "objects").rglob("*"):
        if path.is_file() and path.read_bytes() == b"k" * 1000:
            path.unlink()
    status, out, err = cfsctl.run("oci", "fsck")
    assert status == 1
    assert "oci images: 0/1 ok" in out
    assert "integrity check failed" in err
    assert json.loads(cfsctl("oci", "fsck", "--json"))["ok"] is False
