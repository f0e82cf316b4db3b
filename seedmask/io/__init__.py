"""The only part of the shared library that touches the world: network, files, the command line's plumbing."""
