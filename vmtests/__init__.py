# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The kit: build an image, install it on a disk, boot it, test it."""
