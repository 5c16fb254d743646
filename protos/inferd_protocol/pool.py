"""The descriptor pool of this package's messages.

Not protobuf's default pool: other clients of the same protocol register the same names there.
Server reflection must be given this pool.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
