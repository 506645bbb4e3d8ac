"""Makes the embedded Fashion-MNIST subset from the Debian package `dataset-fashion-mnist`.

Stratified: the first 800 training and 200 test images of each class, in the order of the full set. The same script
checks the committed file against the package: `python tools/make_subset.py --check`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import lzma
import sys
from pathlib import Path

import numpy as np

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).parent.parent / "packages/core-utils/src/core_utils/embedded/fashion_mnist_small.npy.xz"
PER_CLASS = {"train": 800, "t10k": 200}


def subset(source: Path) -> np.ndarray:
    """Rows of 785 bytes: the label, then the 28 x 28 image; 8,000 training rows, then 2,000 test rows."""
    rows = []
    for part, per_class in PER_CLASS.items():
        images = np.frombuffer(
            gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
        )
        labels = np.frombuffer(
            gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
        )
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(10)]))
        rows.append(np.column_stack([labels, images.reshape(len(labels), -1)])[chosen])
    return np.concatenate(rows)


def main() -> int:
    """Writes the subset, or checks the one that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 if they differ")
    options = parser.parse_args()
    rows = subset(options.source)
    if options.check:
        same = np.array_equal(np.load(io.BytesIO(lzma.decompress(TARGET.read_bytes())), allow_pickle=False), rows)
        print(f"{TARGET.name}: {'as the source' if same else 'differs from the source'}")
        return 0 if same else 1
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    content = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    TARGET.write_bytes(content)
    print(f"wrote {TARGET.name}: {len(content)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
