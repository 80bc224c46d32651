# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The command line: the parser, the verbs and what they print."""
