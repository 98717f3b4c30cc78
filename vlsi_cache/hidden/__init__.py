"""One hidden state of the teacher as signs of a random rotation: some dozen bytes for each token.

Words read from a layer keep little of its state. The signs keep its direction without bias, so that
a student of the same width can learn it without the teacher.
"""

from __future__ import annotations

from vlsi_cache.hidden.signs import HiddenSigns, HiddenTap, sign_rows

__all__ = ["HiddenSigns", "HiddenTap", "sign_rows"]
