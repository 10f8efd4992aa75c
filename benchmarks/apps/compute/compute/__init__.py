"""A federation that computes a fixed amount each round and learns nothing."""
