"""In a process with this folder on PYTHONPATH, ESPnet's arguments are not type-checked.

ESPnet has nearly all of its functions rewritten by typeguard while they are imported,
which is a third (202611) to two thirds (202412) of the time in which a command starts.
The checks stay on in the tests' own process, in `make demo-small` and `make across`.
"""

import typeguard


def unchecked(target=None, **options):
    """In place of `typeguard.typechecked`, with arguments or without."""
    return (lambda each: each) if target is None else target


typeguard.typechecked = unchecked
