"""The data: 1,797 hand-written digits, described in ``digits.md``."""

from __future__ import annotations

import gzip
import importlib.resources
from typing import NamedTuple

import numpy as np

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Labels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Digits(NamedTuple):
    """Images of shape (n, 64) with pixels in [0, 1], and their digits of shape (n,)."""

    images: Floats
    labels: Labels


def load(held_out: int = 360, seed: int = 0) -> tuple[Digits, Digits]:
    """Return the digits to train on and those held out, in an order drawn from ``seed``."""
    packed = importlib.resources.files("kernelforge.demo").joinpath("digits.csv.gz").read_bytes()
    numbers = np.array(gzip.decompress(packed).decode().replace("\n", ",").rstrip(",").split(","), np.float32)
    table = np.random.default_rng(seed).permutation(numbers.reshape(-1, 65))
    images, labels = np.asarray(table[:, :64] / 16, np.float32), table[:, 64].astype(np.int64)
    return Digits(images[held_out:], labels[held_out:]), Digits(images[:held_out], labels[:held_out])
