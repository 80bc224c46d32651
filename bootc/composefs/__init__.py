# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The store: file contents once, by fs-verity digest; metadata in EROFS images.

`from bootc.composefs import …` is the Python API; docs/composefs.md has examples. A name's module
is imported when the name is first asked for, so that a part costs no more than it needs.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.composefs.assemble import ComposefsImage as ComposefsImage
    from bootc.composefs.assemble import XattrMode as XattrMode
    from bootc.composefs.assemble import commit_image as commit_image
    from bootc.composefs.assemble import encode_image as encode_image
    from bootc.composefs.assemble import transform_for_boot as transform_for_boot
    from bootc.composefs.assemble import transform_for_oci as transform_for_oci
    from bootc.composefs.diff import Aspect as Aspect
    from bootc.composefs.diff import Change as Change
    from bootc.composefs.diff import Difference as Difference
    from bootc.composefs.diff import diff_trees as diff_trees
    from bootc.composefs.digest import Algorithm as Algorithm
    from bootc.composefs.digest import digest_bytes as digest_bytes
    from bootc.composefs.digest import digest_fd as digest_fd
    from bootc.composefs.dumpfile import dump_lines as dump_lines
    from bootc.composefs.dumpfile import format_dump as format_dump
    from bootc.composefs.dumpfile import parse_dump as parse_dump
    from bootc.composefs.erofs_format import FormatVersion as FormatVersion
    from bootc.composefs.erofs_reader import collect_objects as collect_objects
    from bootc.composefs.erofs_reader import read_image as read_image
    from bootc.composefs.erofs_writer import write_image as write_image
    from bootc.composefs.fsck import FsckReport as FsckReport
    from bootc.composefs.fsck import check_repository as check_repository
    from bootc.composefs.gc import GcResult as GcResult
    from bootc.composefs.gc import collect_garbage as collect_garbage
    from bootc.composefs.karg import format_karg as format_karg
    from bootc.composefs.mount import ImageMount as ImageMount
    from bootc.composefs.mount import MountOptions as MountOptions
    from bootc.composefs.mount import Verity as Verity
    from bootc.composefs.mount import make_mount as make_mount
    from bootc.composefs.mount import mount_image as mount_image
    from bootc.composefs.objects import ObjectCounts as ObjectCounts
    from bootc.composefs.oci_fsck import OciReport as OciReport
    from bootc.composefs.oci_fsck import check_images as check_images
    from bootc.composefs.repository import NotFoundError as NotFoundError
    from bootc.composefs.repository import Repository as Repository
    from bootc.composefs.scan import find_digest as find_digest
    from bootc.composefs.scan import scan_directory as scan_directory
    from bootc.composefs.scan import store_content as store_content
    from bootc.errors import BootcError as BootcError
    from bootc.errors import FormatError as FormatError
    from bootc.tree import Content as Content
    from bootc.tree import Device as Device
    from bootc.tree import Directory as Directory
    from bootc.tree import External as External
    from bootc.tree import Inline as Inline
    from bootc.tree import Leaf as Leaf
    from bootc.tree import Node as Node
    from bootc.tree import Sparse as Sparse
    from bootc.tree import Special as Special
    from bootc.tree import Stat as Stat
    from bootc.tree import Symlink as Symlink
    from bootc.tree import walk as walk

_HOMES = {
    "bootc.errors": ("BootcError", "FormatError"),
    "bootc.tree": (
        "Content",
        "Device",
        "Directory",
        "External",
        "Inline",
        "Leaf",
        "Node",
        "Sparse",
        "Special",
        "Stat",
        "Symlink",
        "walk",
    ),
    "bootc.composefs.assemble": (
        "ComposefsImage",
        "XattrMode",
        "commit_image",
        "encode_image",
        "transform_for_boot",
        "transform_for_oci",
    ),
    "bootc.composefs.diff": ("Aspect", "Change", "Difference", "diff_trees"),
    "bootc.composefs.digest": ("Algorithm", "digest_bytes", "digest_fd"),
    "bootc.composefs.dumpfile": ("dump_lines", "format_dump", "parse_dump"),
    "bootc.composefs.erofs_format": ("FormatVersion",),
    "bootc.composefs.erofs_reader": ("collect_objects", "read_image"),
    "bootc.composefs.erofs_writer": ("write_image",),
    "bootc.composefs.fsck": ("FsckReport", "check_repository"),
    "bootc.composefs.gc": ("GcResult", "collect_garbage"),
    "bootc.composefs.karg": ("format_karg",),
    "bootc.composefs.mount": ("ImageMount", "MountOptions", "Verity", "make_mount", "mount_image"),
    "bootc.composefs.objects": ("ObjectCounts",),
    "bootc.composefs.oci_fsck": ("OciReport", "check_images"),
    "bootc.composefs.repository": ("NotFoundError", "Repository"),
    "bootc.composefs.scan": ("find_digest", "scan_directory", "store_content"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # or a type checker would take any name for one of these
    __all__ = [*_HOME_OF]

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # only when there is something to import

        value = getattr(import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOME_OF})
