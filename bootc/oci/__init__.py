# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What is pulled: image references, manifests, layers."""
