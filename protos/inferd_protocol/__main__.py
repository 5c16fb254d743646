"""`python -m inferd_protocol`: the `inferd` command, where its script is not on the path."""

import sys

from inferd_protocol.command import main

sys.exit(main())
