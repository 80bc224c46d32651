# SPDX-License-Identifier: Apache-2.0 OR MIT
"""From what the repository raises to the errors of the interfaces, in one place.

A handler raises the errors that its method's interface gives a name to; whatever else fails is
InternalError, with the line that a person would have read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import wraps

from bootc.errors import BootcError, chain_text, find_hint
from bootc.varlink import Call, ClientGoneError, Reply, Stream, VarlinkError

REPOSITORY = "org.composefs.Repository"
OCI = "org.composefs.Oci"


def told(error: BaseException) -> str:
    """The error's line, and its advice."""
    hint = find_hint(error)
    return f"{chain_text(error)} (hint: {hint})" if hint else chain_text(error)


def fail(interface: str, name: str, **parameters: object) -> VarlinkError:
    return VarlinkError(f"{interface}.{name}", parameters)


def invalid_request(problem: BaseException | str) -> VarlinkError:
    """org.composefs.Oci's error for what the client got wrong."""
    return fail(
        OCI, "InvalidRequest", message=problem if isinstance(problem, str) else told(problem)
    )


def invalid_digest(problem: BaseException | str) -> VarlinkError:
    return fail(
        OCI, "InvalidDigest", message=problem if isinstance(problem, str) else told(problem)
    )


def internal(interface: str, error: BaseException) -> VarlinkError:
    return fail(interface, "InternalError", message=told(error))


def translated(interface: str, handle: Callable[[Call], Reply]) -> Callable[[Call], Reply]:
    """The handler, with InternalError for what it does not name."""

    @wraps(handle)
    def run(call: Call) -> Reply:
        try:
            return handle(call)
        except (VarlinkError, ClientGoneError):
            raise
        except (BootcError, OSError) as error:
            raise internal(interface, error) from error

    return run


def translated_stream(interface: str, handle: Callable[[Call], Stream]) -> Callable[[Call], Stream]:
    """The same for one that replies several times."""

    @wraps(handle)
    def run(call: Call) -> Generator[Reply, None, Reply]:
        try:
            return (yield from handle(call))
        except (VarlinkError, ClientGoneError):
            raise
        except (BootcError, OSError) as error:
            raise internal(interface, error) from error

    return run
