# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How a host moves between images."""
