"""What the Python functions of `cargo xtask edges` have in common; ../README.md has the protocol."""

import os
import random
import secrets

CALLEE = os.environ["CALLEE"]


def call_to(own_id, fail=False):
    """URL and headers of a call."""
    headers = {"x-true-parent": own_id}
    if fail:
        headers["x-fail"] = "1"
    return f"{CALLEE}/{secrets.token_hex(8)}", headers


def timer():
    """For how long a `timer` waits, in seconds."""
    return random.uniform(0.001, 0.010)


# For how long `after` waits after the answer, in seconds.
AFTER = 0.005
