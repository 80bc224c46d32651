# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Our exceptions as errors of the interfaces, all of which have the same ones.

| raised | replied |
|---|---|
| `OptionError` | `InvalidOption`, with the parameter's name |
| `BusyError` | `Busy` |
| `NotManagedError` | `NotManaged` |
| `NotRootError` | `org.varlink.service.PermissionDenied` |
| `KeyboardInterrupt` | `Cancelled` |
| any other `BootcError` or `OSError` | `Failed`: the line and the hint of the command line |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bootc.deploy.sysroot import BusyError
from bootc.errors import BootcError, chain_text, find_hint
from bootc.varlink.message import VarlinkError

DENIED = "org.varlink.service.PermissionDenied"


class OptionError(BootcError):
    """The parameter `field` of a call cannot be what it was."""

    def __init__(self, field: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


class NotManagedError(BootcError):
    """bootc does not manage this machine."""


class NotRootError(BootcError):
    """We aren't root, so nothing can be changed; nor could who asks for it."""

    def __init__(self) -> None:
        super().__init__("this needs root")


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """Whatever the block refuses is the fault of the parameter `field`."""
    try:
        yield
    except OptionError:
        raise
    except (BootcError, OSError, ValueError) as error:
        raise OptionError(field, chain_text(error), hint=find_hint(error)) from error


def error_reply(interface: str, error: BaseException) -> VarlinkError:
    """What `interface` replies for an exception."""
    match error:
        case VarlinkError():
            return error
        case KeyboardInterrupt():
            return VarlinkError(f"{interface}.Cancelled")
        case NotRootError():
            return VarlinkError(DENIED)
        case OptionError():
            name = "InvalidOption"
        case BusyError():
            name = "Busy"
        case NotManagedError():
            name = "NotManaged"
        case _:
            name = "Failed"
    parameters = {"message": " ".join(chain_text(error).split("\n")), "hint": find_hint(error)}
    if isinstance(error, OptionError):
        parameters["field"] = error.field
    return VarlinkError(f"{interface}.{name}", parameters)
