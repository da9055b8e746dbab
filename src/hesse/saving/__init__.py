# SPDX-License-Identifier: Apache-2.0
"""States in files: what is packed into one, and what is believed of one that is read.

A file may come from a stranger, or be damaged. No code is stored in it or run for it: it holds
tensors and JSON, and names in it are those of its tensors alone. What is read has the fields and
types of the state that it is for, and takes no more memory than the file has bytes.
"""
