"""The contract between inferd's parts: on the wire (Open Inference Protocol v2), on disk and on the command line.

Imports only protobuf and numpy, so that a client can depend on it for the price of those two. This module itself
imports nothing.
"""
