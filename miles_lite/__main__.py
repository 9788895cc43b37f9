"""`python -m miles_lite` is `miles-lite`."""

import sys

from miles_lite.cli import main

sys.exit(main())
