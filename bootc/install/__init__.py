# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How the first deployment gets onto a disk."""
