"""The supervisor: settings, process tree, pools, shard owners."""
