"""A decoder that aborts its process on one file, in the workers of a Ray cluster that is started with this on its path.

`SAM3LABEL_POISON` is the end of that file's name.
"""

from __future__ import annotations

import os
import sys
from typing import Any

if "default_worker.py" in " ".join(sys.orig_argv) and os.environ.get("SAM3LABEL_POISON"):
    from sam3label.media import image

    read_photo = image.read_photo

    def read(path: Any, *rest: Any, **named: Any) -> image.Photo:
        if str(path).endswith(os.environ["SAM3LABEL_POISON"]):
            os.abort()
        return read_photo(path, *rest, **named)

    image.read_photo = read
