"""Training of networks by several optimisers for equal seconds, in runs that can be interrupted."""
