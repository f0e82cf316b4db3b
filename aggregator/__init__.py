"""The program on the server: collects masks and updates the global probabilities."""
