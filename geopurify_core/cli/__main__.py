"""``python -m geopurify_core.cli``."""

from geopurify_core.cli import main

main()
