"""Linux primitives by system call: mounts, namespaces, seccomp and the FUSE protocol."""
