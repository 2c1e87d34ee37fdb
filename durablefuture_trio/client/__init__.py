"""Starting workflows and waiting for them."""
