"""The limits of the server that the integration tests share: small, so that they are easily met."""

MAX_BATCH_SIZE = 8
MAX_MESSAGE_SIZE = 1024 * 1024
MAX_REQUEST_ROWS = 1000
