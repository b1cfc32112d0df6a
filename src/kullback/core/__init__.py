"""The specification: eager float64 PyTorch that a student can read. Engines transcribe it."""
