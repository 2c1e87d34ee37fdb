"""The child process that runs activities: ``python -m durablefuture_trio.activity_worker <fd>``."""
