"""From conversations to tokens, pixels and the response mask."""
