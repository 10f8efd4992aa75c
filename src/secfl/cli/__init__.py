"""One file a command: arguments in, one library call, rendering, exit code."""
