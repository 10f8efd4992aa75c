"""Messages between parties, manager and enclaves, without input or output."""
