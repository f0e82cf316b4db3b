"""Input and output of the shared library: network, files, settings, and the parts of the command line."""
