# SPDX-License-Identifier: Apache-2.0 OR MIT
"""podman: its API over a socket, and bootc's own container storage, which podman fills."""
