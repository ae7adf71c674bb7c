"""``kernelforge bench``: kernelforge beside its peers and the limits of the machine, checked before it is timed."""
