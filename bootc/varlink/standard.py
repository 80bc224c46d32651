# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The interfaces that every service of ours has: the standard one, and the errors of the transport.

Source of org.varlink.service: varlink.org/Service.
"""

from __future__ import annotations

from bootc.varlink.idl import parse
from bootc.varlink.message import VarlinkError

SERVICE = parse(
    """# What every varlink service answers.
interface org.varlink.service

# Who made this service, and which interfaces it has.
method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

# The text of an interface.
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
"""
)

TRANSPORT = parse(
    """# What can go wrong with a message before a method sees it, and inside of the server.
# It has no methods, so GetInfo does not list it.
interface containers.bootc.transport

# The message isn't what the protocol says; the connection is closed.
error BadMessage (problem: string)

# The message has more bytes than that; the connection is closed.
error MessageTooLong (bytes_max: int)

# So much has come from all clients that is not whole yet; the connection is closed.
error TooMuchUnfinished (bytes_max: int)

# The message came with more file descriptors than that.
error TooManyDescriptors (descriptors_max: int)

# The server ran out of room for file descriptors while it received those of the message.
error DescriptorsLost ()

# The method wants another number of file descriptors.
error WrongDescriptors (expected: string, received: int)

# So many clients are connected; the connection is closed.
error TooManyClients (clients_max: int)

# The server failed, or its reply was not what its interface says.
error Failed (method: string, problem: string)
"""
)


def invalid(parameter: str) -> VarlinkError:
    """The error for a parameter whose type is right and whose value isn't."""
    return VarlinkError("org.varlink.service.InvalidParameter", {"parameter": parameter})


def bad_message(problem: str) -> VarlinkError:
    return VarlinkError("containers.bootc.transport.BadMessage", {"problem": problem})
