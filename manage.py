#!/usr/bin/env python
"""Everything that is done to a marketplace is a command of this file."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    from django.core.management import execute_from_command_line  # noqa: PLC0415 - it reads the line above

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
