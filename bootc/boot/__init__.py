# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How firmware finds a deployment: boot loader entries, kernels, kernel arguments."""
