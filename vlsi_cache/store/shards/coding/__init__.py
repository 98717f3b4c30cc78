"""How the chunks of an array become bytes: the codecs, and the one of draws."""
