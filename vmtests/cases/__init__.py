# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Cases that drive machines from outside."""
