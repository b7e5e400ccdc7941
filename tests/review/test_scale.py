"""The benchmark's way, smaller: many images and instances, every kind of correction, exact to the pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench_review import bench


def test_a_run_goes_to_fiftyone_and_comes_back_exact(fo: Any, tmp_path: Path, name: str, capsys: Any) -> None:
    first, second, got, wanted = bench(fo, tmp_path, name, images=40, instances=10)
    assert got == wanted
    assert first.actions == {"relabelled": 8, "deleted": 8, "added": 8, "reshaped": 8, "reviewed": 20, "approved": 188}
    assert second.actions == {}
    assert sum(map(len, wanted.values())) == 400
    assert capsys.readouterr().out.count("peak memory") == 7
