"""What a train step is lowered to: one file per target."""
