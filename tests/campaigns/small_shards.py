"""A command with text embeddings in shards of two captions, not 512, so that there are several.

python -m tests.campaigns.small_shards -m data.embed_text --data=...
"""

from __future__ import annotations

import sys

from fasttta_jax.text import table
from tests.support import commands

if __name__ == "__main__":
    table.SHARD_SIZE = 2
    commands.execute(sys.argv[1:])
