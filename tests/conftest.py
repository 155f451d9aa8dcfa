"""One thread for numerical libraries, here and in every process that a test starts: the tests share few cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
