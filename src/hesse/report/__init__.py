# SPDX-License-Identifier: Apache-2.0
"""What a person sees: the demonstration and its report (needs the extra hesse[demo])."""
