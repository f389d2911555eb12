#!/usr/bin/env python
"""Everything that is done to a marketplace is a command of this file."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    if sys.argv[1:2] == ["up"]:
        from marketplace.embedded import up  # noqa: PLC0415 - it decides on the home before settings are read

        sys.exit(up.main(sys.argv[2:]))
    from django.core.management import execute_from_command_line  # noqa: PLC0415 - `up` does without Django

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
