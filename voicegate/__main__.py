"""`python -m voicegate` is `voicegate`."""

import sys

from voicegate.cli import main

sys.exit(main())
