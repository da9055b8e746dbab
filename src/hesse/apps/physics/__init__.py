# SPDX-License-Identifier: Apache-2.0
"""Vibrations, transition states and responses of molecules and of other energies."""
