# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What bootc serves over varlink: the status, updates, installs. docs/varlink-bootc.md tells how.

The interface files lie here; `server` joins them with their handlers. What changes the machine runs
in a process of its own (`worker`), as if it were a command.
"""
