# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl` and the names of the C tools."""
