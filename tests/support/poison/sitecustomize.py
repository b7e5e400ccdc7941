"""A decoder that aborts its process on one file, or is slow, in the workers of a Ray cluster that has this on its path.

`SAM3LABEL_POISON` is the end of that file's name, `SAM3LABEL_SLOW` the seconds that every file takes longer.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

POISON, SLOW = os.environ.get("SAM3LABEL_POISON"), float(os.environ.get("SAM3LABEL_SLOW", "0"))
if "default_worker.py" in " ".join(sys.orig_argv) and (POISON or SLOW):
    from sam3label.media import image

    read_photo = image.read_photo

    def read(path: Any, *rest: Any, **named: Any) -> image.Photo:
        if POISON and str(path).endswith(POISON):
            os.abort()
        time.sleep(SLOW)
        return read_photo(path, *rest, **named)

    image.read_photo = read
