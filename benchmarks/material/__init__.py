"""What benchmarks measure with: models and text, real ones and made-up ones."""
