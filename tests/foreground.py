# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A plugin of pytest that all tests begin with (pyproject.toml names it)."""

import signal

# A shell that starts a program in the background makes it ignore SIGINT, and so do all that it
# starts, whatever a test sends them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
