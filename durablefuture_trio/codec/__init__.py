"""User values on their way into and out of the history. Used by clients and child processes only."""
