"""One module a platform: attester and evidence verifier."""
