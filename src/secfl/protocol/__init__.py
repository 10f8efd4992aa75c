"""Messages between parties, services and the manager, and the rules of each exchange; nothing here opens a socket."""
