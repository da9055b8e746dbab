# SPDX-License-Identifier: Apache-2.0
"""`python -m hesse` is the command `hesse`."""

from hesse.cli import main

if __name__ == "__main__":
    main()
