# SPDX-License-Identifier: Apache-2.0
"""Random functions and models, every product of which is compared with oracles.

`python -m tools.fuzz --help`; CONTRIBUTING.md says how a campaign is run.
"""
