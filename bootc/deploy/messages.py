# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Identifiers of our messages in the journal (MESSAGE_ID): 128 bits each, as sd_id128 wants them.

docs/journal.md lists them for users. `ROLLBACK` and `NO_ORIGIN` are those that bootc documents or
tests for; where bootc's had 33 digits, which are no ids, ours are new.
"""

STAGE = "8f7a2b1c3d4e5f6a7b8c9d0e1f2a3b4c"
SWITCH = "2e3116c8d8d44d5e928877f02873a4c8"
FINALIZE = "e2297a6f799d4dc4b21b53a6807d9f40"
ROLLBACK = "26f3b1eb24464d12aa5e7b544a6b5468"
DELETE = "91527954dc274bc18468537461846001"
PULL = "9c9c0d4645744b4281e9068a18c4db4b"
UNIFIED = "1a0b9c8d7e6f5a4b3c2d1e0f9a8b7c6d"
NO_ORIGIN = "d264f924dadb4c31bff0412107d391fb"
"""A deployment has a boot entry, but no origin file."""
REMOVED = "d2c1fa9d3cbd4d3f8a5e7cf1d0b1a6e4"
"""A leftover, or a part of an old deployment, was removed."""
MIGRATED = "5b7e1c1b0c4f4b5e9d0a4c6f2f8f63b1"
"""Files or entries of an older version were brought into today's form."""
SKIPPED = "c06f3c1a2c9e4d9d8a33f1a52d6be0a7"
"""The form of an older version was found and left as it is; the message says why."""
