# SPDX-License-Identifier: Apache-2.0
"""What the command line sets."""

moments = 100
"""At how many a process is killed."""
