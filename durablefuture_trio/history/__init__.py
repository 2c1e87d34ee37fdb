"""What happened: the events of a run, how they are stored, and what they mean."""
