"""The program on the device: trains the exported graph and publishes masks."""
