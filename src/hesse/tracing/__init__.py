# SPDX-License-Identifier: Apache-2.0
"""Recorded computations: a tape, the programs made of it, and how these get shorter and faster.

Nothing here knows of derivatives; `hesse.ad` records products and takes them by their programs.
"""
