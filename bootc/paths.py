# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Where things are: the on-disk layout of an installed system and the names that bootc gives.

Paths below the physical root (`/sysroot` on a booted system, the mounted target at install) are
relative. Source: the layout that composefs hosts have had since bootc 1.16.
"""

SYSROOT = "/sysroot"
REPOSITORY = "composefs"
STATE_DEPLOY = "state/deploy"
STATE_VAR = "state/os/default/var"
STATE_VAR_LINK = "../../os/default/var"
STORAGE = "composefs/bootc/storage"
OSTREE_LINK = ("ostree/bootc", "../composefs/bootc")

STAGED = "/run/composefs/staged-deployment"
LOCK = "/run/bootc/lock"
ESP_MOUNT = "/run/bootc/esp"
"""Where a writer has the ESP, in a mount namespace of its own."""
OSTREE_BOOTED = "/run/ostree-booted"

ESP_KERNELS = "EFI/Linux"
ENTRIES = "loader/entries"
ENTRIES_STAGED = "loader/entries.staged"
BOOT_PREFIX = "bootc_composefs-"
"""Before the deployment id, in the name of a kernel folder or of a UKI."""

TAG_PREFIX = "localhost/bootc-"
"""Before the manifest digest, in the repository tag that keeps an image of a deployment."""

UKI_FOLDER = "EFI/Linux/bootc"
UKI_ADDONS = ".extra.d"
"""After the name of a UKI: the folder of its addons."""

KARGS_D = "usr/lib/bootc/kargs.d"
MODULES = "usr/lib/modules"
INSTALL_CONFIG_DIRS = ("/usr/lib", "/usr/local/lib", "/etc", "/run")

EFI_VARIABLES = "/sys/firmware/efi/efivars"
EFI_LOADER_GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def state_dir(deployment: str) -> str:
    """The state folder of a deployment, below the physical root."""
    return f"{STATE_DEPLOY}/{deployment}"


def uki_file(deployment: str) -> str:
    """The unified kernel image of a deployment, below the ESP."""
    return f"{UKI_FOLDER}/{BOOT_PREFIX}{deployment}.efi"


def origin_file(deployment: str) -> str:
    return f"{STATE_DEPLOY}/{deployment}/{deployment}.origin"
