"""Policy over the broker port: subjects, commits, loading, leases, inboxes, schedules, projection."""
