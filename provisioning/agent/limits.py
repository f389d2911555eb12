"""How many files may be open at once: for the agent as many as the machine allows, for what it runs as before."""

import resource

BEFORE = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # As whoever started this agent set it.


def raise_files() -> int:
    """Let this process have as many open files as the machine allows; return how many those are."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
