"""``kernelforge demo``: train a classifier of hand-written digits, written in plain NumPy, on any device."""
