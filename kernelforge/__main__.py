"""``python -m kernelforge``."""

from kernelforge.cli import main

raise SystemExit(main())
