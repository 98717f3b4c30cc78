"""What a stage logs: lines of a file, events, and trackers' runs."""
