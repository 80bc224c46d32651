# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`containers.bootc.install.GetConfiguration`: the install configuration, all files merged."""

from __future__ import annotations

from bootc.errors import BootcError
from bootc.install.config import InstallConfig, load_config
from bootc.services.failures import error_reply
from bootc.varlink.message import Reply
from bootc.varlink.service import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INTERFACE = "containers.bootc.install"


def get_configuration(call: Call) -> Reply:
    try:
        config = load_config()
    except (BootcError, OSError) as error:
        raise error_reply(INTERFACE, error) from error
    everything = bool(call.parameters.get("all"))
    return Reply({"configuration": configuration_reply(config, everything=everything)})


def configuration_reply(config: InstallConfig, *, everything: bool) -> dict[str, Any]:
    """The `Configuration` of the interface; kernel arguments only with `everything`."""
    block = None if config.block is None else [item.value for item in config.block]
    return {
        "rootFsType": config.root_filesystem.value if config.root_filesystem else None,
        "block": block,
        "kargs": list(config.kargs) if everything else None,
        "kargDeletes": list(config.karg_deletes) if everything else None,
        "rootMountSpec": config.root_mount_spec,
        "bootMountSpec": config.boot_mount_spec,
        "stateroot": config.stateroot,
        "bootloader": config.bootloader.value if config.bootloader else None,
        "discoverablePartitions": config.discoverable_partitions,
        "enforceContainerSigpolicy": config.enforce_container_sigpolicy,
        "blsAppendExceptDefault": config.bls_append_except_default,
        "skipBootUuid": config.skip_boot_uuid,
    }
