"""The activity child: a Trio process that runs activities, async ones as tasks and plain ones in threads."""
