"""``python -m vlsi_cache.cli``: the same as the console script."""

from vlsi_cache.cli.main import main

main()
