"""What you hold: forms name what a tensor means."""
