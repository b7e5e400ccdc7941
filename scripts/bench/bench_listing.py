"""What it takes to find photos in object storage: time and memory of this process, over moto's server on loopback.

    python scripts/bench/bench_listing.py --objects 100000

moto goes through all it holds for each page of a listing, so most of the time is the server's; its part is printed.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil

BUCKET, FOLDERS = "site", 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.serve, chosen.objects)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--serve", str(port), "--objects", str(chosen.objects)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            measure(f"http://127.0.0.1:{port}", chosen.objects, psutil.Process(server.pid))
        finally:
            server.terminate()


def serve(port: int, objects: int) -> None:
    """Fill moto's own store, which is quicker than through its server, and serve it."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    for n in range(objects):
        backend.put_object(BUCKET, f"photos/{n % FOLDERS:04d}/{n:09d}.jpg", b"x")
    ThreadedMotoServer("127.0.0.1", port, verbose=False).start()
    print("ready", flush=True)
    threading.Event().wait()


def measure(url: str, objects: int, server: psutil.Process) -> None:
    """Print what a listing takes alone, and what finding the items of a run takes."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "none", "AWS_ENDPOINT_URL": url}
    from sam3label.media import storage
    from sam3label.media.discovery import find_media

    place = f"s3://{BUCKET}/photos"
    storage.stored_object(f"{place}/0000/{0:09d}.jpg")  # the library is imported, the connection made
    for what, find in (
        ("listed, nothing kept", lambda: sum(1 for _ in storage.listing(place))),
        ("found as the items of a run", lambda: len(find_media([place]).items)),
    ):
        peak, before, busy = _watch(), psutil.Process().memory_info().rss, server.cpu_times().user
        start = time.perf_counter()
        found = find()
        seconds, more = time.perf_counter() - start, peak() - before
        served = server.cpu_times().user - busy
        assert found == objects, found
        print(
            f"{what}: {found:,} in {seconds:.1f} s, of which the server computed {served:.1f} s; "
            f"{more / 1e6:.1f} MB more memory, {more / found:.0f} bytes each",
            flush=True,
        )


def _watch() -> Callable[[], int]:
    """Return what tells the most memory of this process since, in bytes."""
    process, most = psutil.Process(), [0]

    def look() -> None:
        while True:
            most[0] = max(most[0], process.memory_info().rss)
            time.sleep(0.02)

    threading.Thread(target=look, daemon=True).start()
    return lambda: most[0]


if __name__ == "__main__":
    main()
