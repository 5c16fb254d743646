"""Memory of clients that tensors lie in, in place of the message."""
