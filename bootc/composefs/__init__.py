# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The store: file contents once, by fs-verity digest; metadata in EROFS images."""
