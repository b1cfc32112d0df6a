"""The specification in `core`, made fit for large inputs. Each engine computes the same functions."""
