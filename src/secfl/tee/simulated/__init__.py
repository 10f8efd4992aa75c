"""The simulated platform process: real quote formats, a root of its own, no protection against root."""
