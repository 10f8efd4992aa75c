"""Engine adapters and everything that concerns rounds."""
