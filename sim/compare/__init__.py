"""`seedmask compare`: mask training against its rivals, on the same data, by the bytes that were really sent."""
