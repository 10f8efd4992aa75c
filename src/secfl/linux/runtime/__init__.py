"""The runtime image: one immutable, reproducible root file system that an enclave starts from."""
