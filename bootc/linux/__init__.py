# SPDX-License-Identifier: Apache-2.0 OR MIT
"""System calls, no policy. Standard library only: the initrd packs these modules."""
