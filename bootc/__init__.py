# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Install, boot and update whole operating systems from OCI images, on composefs.

This module imports nothing: the initrd and the CLI's fast paths load it.
"""

__version__ = "0.1.0"
