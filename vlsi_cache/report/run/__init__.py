"""What a run's folder says: its stages, their metrics and their matchings."""
