"""Whether a hidden state still pays in longer runs: sampled answers, one cache, two arms."""
