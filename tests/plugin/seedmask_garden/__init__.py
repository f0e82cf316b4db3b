"""One plug-in of each kind, a module each; docs/how-to/plug-ins.md shows them."""
