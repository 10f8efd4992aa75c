"""Evidence to claims to result: what is verified, against what it is appraised, and what it is bound to. Pure."""
