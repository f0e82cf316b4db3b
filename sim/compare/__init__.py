"""`seedmask compare`: compare mask training with other methods, on the same data, by the bytes really sent."""
