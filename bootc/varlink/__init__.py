# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The varlink protocol with file descriptors: interface files, server, client, activation.

`from bootc.varlink import …` is the Python API; docs/varlink.md has examples. This package knows
the protocol alone; what is served over it lies elsewhere. A name's module is imported when the name
is first asked for, because a program that a socket activates has to answer at once.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.varlink.activation import Activated as Activated
    from bootc.varlink.activation import from_environment as from_environment
    from bootc.varlink.activation import is_activated as is_activated
    from bootc.varlink.call import Call as Call
    from bootc.varlink.call import Cancelled as Cancelled
    from bootc.varlink.call import ClientGoneError as ClientGoneError
    from bootc.varlink.call import Connection as Connection
    from bootc.varlink.call import Handler as Handler
    from bootc.varlink.call import Peer as Peer
    from bootc.varlink.call import Stream as Stream
    from bootc.varlink.call import Upgrade as Upgrade
    from bootc.varlink.client import Client as Client
    from bootc.varlink.client import Upgraded as Upgraded
    from bootc.varlink.idl import Interface as Interface
    from bootc.varlink.idl import parse as parse
    from bootc.varlink.message import FdList as FdList
    from bootc.varlink.message import Reply as Reply
    from bootc.varlink.message import VarlinkError as VarlinkError
    from bootc.varlink.server import Server as Server
    from bootc.varlink.server import serve as serve
    from bootc.varlink.server import serving as serving
    from bootc.varlink.service import Service as Service
    from bootc.varlink.standard import invalid as invalid
    from bootc.varlink.types import Mismatch as Mismatch
    from bootc.varlink.wire import Limits as Limits
    from bootc.varlink.wire import bind as bind

_HOMES = {
    "bootc.varlink.activation": ("Activated", "from_environment", "is_activated"),
    "bootc.varlink.call": (
        "Call",
        "Cancelled",
        "ClientGoneError",
        "Connection",
        "Handler",
        "Peer",
        "Stream",
        "Upgrade",
    ),
    "bootc.varlink.client": ("Client", "Upgraded"),
    "bootc.varlink.idl": ("Interface", "parse"),
    "bootc.varlink.message": ("FdList", "Reply", "VarlinkError"),
    "bootc.varlink.server": ("Server", "serve", "serving"),
    "bootc.varlink.service": ("Service",),
    "bootc.varlink.standard": ("invalid",),
    "bootc.varlink.types": ("Mismatch",),
    "bootc.varlink.wire": ("Limits", "bind"),
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
